"""The HTTP response that carries a verdict, in the media type and language its client prefers.

RFC 6585: caches must not store responses with its status codes. So every reply has no-store, and
none has a validator. (Chromium stores a 511 without Cache-Control; WebKitGTK reuses one that has
only a Last-Modified.) A reply repeats nothing that the client sent, except the name of a header
field that is too large. The module that sends the reply adds Date and Connection.

A refused client may ask as often as it likes, so replies are cached: one seen before takes 3 us, a
new one (a `login_url` with a fresh token in it) 20 us.
"""

import json
from base64 import b64encode
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from html import escape
from http import HTTPStatus
from urllib.parse import urlsplit

from capport.core.http import COPIES, is_token
from capport.core.negotiation import Language, MediaType, preferred_language, preferred_media_type
from capport.core.phrases import PHRASES, Phrases
from capport.core.verdict import (
    Closed,
    HeaderFieldsTooLarge,
    Imitated,
    NetworkAuthenticationRequired,
    PreconditionRequired,
    Refusal,
    SignIn,
    TooManyRequests,
    Unavailable,
)

type Fields = tuple[tuple[str, str], ...]

_KEPT = 256  # replies of 4 KB, 1 MB in all


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply depends on in its request. Several Accept lines are joined with commas.

    Two requests that get the same reply have the same `shape`.
    """

    method: str = "GET"
    accept: str = ""
    accept_language: str = ""
    media_type: MediaType = field(init=False, repr=False, compare=False)
    language: Language = field(init=False, repr=False, compare=False)
    shape: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        media_type = preferred_media_type(self.accept)
        language = preferred_language(self.accept_language)
        object.__setattr__(self, "media_type", media_type)
        object.__setattr__(self, "language", language)
        body = "no body" if self.method == "HEAD" else "body"
        object.__setattr__(self, "shape", f"{media_type.value} {language.value} {body}")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response, its `fields` in order. Content-Length is also right for HEAD."""

    status: int
    reason: str
    fields: Fields
    body: bytes


def reply_to(verdict: Refusal, asked: Asked) -> Reply:
    """The reply that carries `verdict`. For HEAD it has no body (RFC 9110 section 9.3.2)."""
    # `because` names the client, so with it there would be a cached reply for each client.
    facts = replace(verdict, because="")
    if isinstance(facts, SignIn):
        reply = _redirect(facts)
    elif isinstance(facts, Closed):
        reply = _in_english(HTTPStatus.BAD_GATEWAY, verdict.because)
    elif isinstance(facts, Unavailable):
        said, later = "the captive portal is recovering from a fault", (("Retry-After", "1"),)
        reply = _in_english(HTTPStatus.SERVICE_UNAVAILABLE, said, later)
    elif isinstance(facts, Imitated):
        reply = _imitated(facts)
    else:
        reply = _refusal(facts, asked.language, asked.media_type)
    if asked.method == "HEAD":
        return Reply(reply.status, reply.reason, reply.fields, b"")
    return reply


@dataclass(frozen=True, slots=True)
class _Message:
    """A reply before it has a media type. `paragraphs` are for HTML, `detail` for the others."""

    status: HTTPStatus
    heading: str
    paragraphs: tuple[str, ...]
    detail: str
    network: str = ""
    blocked: bool = False
    login_url: str | None = None
    refresh: int | None = None
    fields: Fields = ()


@lru_cache(_KEPT)
def _refusal(
    verdict: NetworkAuthenticationRequired
    | HeaderFieldsTooLarge
    | TooManyRequests
    | PreconditionRequired,
    language: Language,
    media_type: MediaType,
) -> Reply:
    phrases = PHRASES[language]
    match verdict:
        case NetworkAuthenticationRequired():
            message = _network_authentication_required(verdict, phrases)
        case HeaderFieldsTooLarge():
            message = _header_fields_too_large(verdict, phrases)
        case TooManyRequests():
            message = _too_many_requests(verdict, phrases)
        case PreconditionRequired():
            message = _precondition_required(verdict, phrases)
    fields: Fields = (
        ("Content-Language", language.value),
        ("Vary", "Accept-Language, Accept"),
        *message.fields,
    )
    match media_type:
        case MediaType.HTML:
            return _html(message.status, _page(message, language), fields)
        case MediaType.PROBLEM:
            return _reply(message.status, "application/problem+json", _problem(message), fields)
        case MediaType.TEXT:
            return _reply(message.status, "text/plain; charset=utf-8", _line(message), fields)


def _network_authentication_required(
    verdict: NetworkAuthenticationRequired, phrases: Phrases
) -> _Message:
    """511, with a link to the sign-in, and never the sign-in itself. RFC 6585 section 6."""
    url, network, refresh = verdict.login_url, verdict.network or "", verdict.refresh
    sentence = phrases.before_use
    if verdict.blocked:
        network, refresh = "", None
        heading, sentence = phrases.not_allowed, phrases.ask_operator
        detail = f"{heading} ({url}). {sentence}"
    elif network:
        heading = phrases.sign_in_named.format(network=network)
        detail = phrases.sign_in_at_named.format(network=network, url=url)
    else:
        heading, detail = phrases.sign_in, phrases.sign_in_at.format(url=url)
    return _Message(
        HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED,
        heading,
        (sentence, phrases.not_the_origin),
        f"{detail} {phrases.not_the_origin}",
        network=network,
        blocked=verdict.blocked,
        login_url=url,
        refresh=refresh,
    )


def _header_fields_too_large(verdict: HeaderFieldsTooLarge, phrases: Phrases) -> _Message:
    """431, with the name of the field, if one is to blame and its name can be shown.

    RFC 6585 section 5.
    """
    if verdict.field is None:
        what = phrases.all_too_large
    elif name := _shown(verdict.field):
        what = phrases.field_too_large.format(field=name)
    else:
        what = phrases.a_field_too_large
    return _message(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        phrases.fields_too_large,
        (what, phrases.make_smaller),
    )


def _too_many_requests(verdict: TooManyRequests, phrases: Phrases) -> _Message:
    """429, with the limit and how long to wait. RFC 6585 section 4."""
    sentences = [phrases.too_many_from_you]
    if limit := verdict.limit:
        sentences.append(phrases.limit.format(count=limit.count, time=phrases.time(limit.per)))
    sentences.append(phrases.try_again.format(time=phrases.time(verdict.retry_after)))
    return _message(
        HTTPStatus.TOO_MANY_REQUESTS,
        phrases.too_many_requests,
        tuple(sentences),
        (("Retry-After", str(verdict.retry_after)),),
    )


def _precondition_required(verdict: PreconditionRequired, phrases: Phrases) -> _Message:
    """428, with how to resubmit the request. RFC 6585 section 3."""
    copies = verdict.method in COPIES
    sentences = (
        phrases.be_conditional,
        phrases.how_to_resubmit_a_copy if copies else phrases.how_to_resubmit,
    )
    return _message(HTTPStatus.PRECONDITION_REQUIRED, phrases.precondition_required, sentences)


def _message(
    status: HTTPStatus, heading: str, sentences: tuple[str, ...], fields: Fields = ()
) -> _Message:
    return _Message(status, heading, sentences, " ".join(sentences), fields=fields)


_LONGEST_NAME = 60  # The longest name in IANA's registry has 45.


def _shown(field_name: str) -> str | None:
    """`field_name`, cut; None if it is not a name (RFC 9110 section 5.1). The client chose it."""
    if not is_token(field_name):
        return None
    return field_name if len(field_name) <= _LONGEST_NAME else f"{field_name[:_LONGEST_NAME]}…"


# The page loads nothing and runs no script, so that it looks and works the same in the reduced
# browsers that systems open for a sign-in. Contrast is 4.5:1 or more, light and dark (WCAG 2.2,
# 1.4.3). The colours are those of the embedded login server.
_STYLE = """
:root{color-scheme:light dark;--back:#f4f1ea;--card:#fffefb;--ink:#1b2220;--faint:#59635f;\
--line:#ddd7ca;--act:#0d5c4c;--on-act:#fff}
@media(prefers-color-scheme:dark){:root{--back:#121615;--card:#1a201e;--ink:#edeee9;--faint:#a5b0ab;\
--line:#323b38;--act:#83d6bd;--on-act:#05261e}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:flex;flex-direction:column;align-items:center;\
justify-content:center;padding:1.25rem;background:var(--back);color:var(--ink);\
font:1.0625rem/1.55 system-ui,sans-serif}
main{width:100%;max-width:32rem;padding:clamp(1.5rem,6vw,2.75rem);background:var(--card);\
border:1px solid var(--line);border-radius:1rem;overflow-wrap:anywhere}
h1{margin:0 0 1rem;font:600 1.75rem/1.2 ui-serif,Georgia,serif;text-wrap:balance}
h1 span{display:inline-block;max-width:100%}
p{margin:0 0 1rem}
a{display:inline-block;margin-top:.5rem;padding:.7rem 1.35rem;border-radius:.6rem;\
background:var(--act);color:var(--on-act);font-weight:600;text-decoration:none}
a:hover{text-decoration:underline}
.faint a{margin:0;padding:0;background:none;color:inherit;font-weight:inherit;\
text-decoration:underline}
@media(max-width:34rem){p:not(.faint)>a{display:block;text-align:center}}
a:focus-visible{outline:3px solid var(--act);outline-offset:3px}
.faint,footer{color:var(--faint);font-size:.9rem}
main>:last-child{margin-bottom:0}
footer{margin:1.25rem 0 0;text-align:center}
"""
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _page(message: _Message, language: Language) -> str:
    phrases, refresh, link = PHRASES[language], "", ""
    if message.login_url is not None:
        url, host = escape(message.login_url), escape(urlsplit(message.login_url).netloc)
        if message.blocked:
            # RFC 6585 section 6 wants the link. It leads to no form, so it is not a button.
            notes = [f'<a href="{url}">{host}</a>']
        else:
            link = f'<p><a href="{url}">{phrases.link}</a></p>\n'
            # Shows the login server's host to people who check it before they follow the link.
            notes = [host]
        if message.refresh is not None:
            refresh = f'<meta http-equiv="refresh" content="{message.refresh}; url={url}">\n'
            later = phrases.taken_later.format(time=phrases.time(message.refresh))
            notes.append(later if message.refresh else phrases.taken_now)
        link += f'<p class="faint">{"<br>".join(notes)}</p>\n'
    title = heading = escape(message.heading)
    if message.network:
        # A name that does not fit gets a line of its own, and breaks only if it is still too long.
        name = f"<span>{escape(message.network)}</span>"
        heading = phrases.sign_in_named.format(network=name)
    paragraphs = "".join(f"<p>{escape(text)}</p>\n" for text in message.paragraphs)
    return f"""<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{heading}</h1>
{paragraphs}{link}</main>
<footer lang="en">{message.status.value} {message.status.phrase}</footer>
</body>
</html>
"""


def _problem(message: _Message) -> str:
    """Problem details. With about:blank, `title` is the status phrase (RFC 9457 section 4.2.1)."""
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": message.status.phrase,
        "status": message.status.value,
        "detail": message.detail,
    }
    if message.login_url is not None:
        problem["login_url"] = message.login_url
    return json.dumps(problem, ensure_ascii=False) + "\n"


def _line(message: _Message) -> str:
    """One line, even if the network's name has line breaks. It starts with the status.

    NetworkManager ignores the status, and takes a body that starts with the text it expects as
    proof that it is online. The network's name must not be able to start the body.
    """
    text = f"{message.status.value} {message.status.phrase}: {message.detail}"
    return " ".join(text.split()) + "\n"


@lru_cache(_KEPT)
def _redirect(verdict: SignIn) -> Reply:
    """302, not 303, because ChromeOS takes only 302 and 307 for a portal.

    The page is in English, because checks state no preference.

    Only ConnMan's check must not get a body. If the field is spelt "Location", ConnMan 1.41 follows
    it by itself, with TLS 1.0, and never finishes (measured). It does not recognise "location", and
    asks for a browser instead.
    """
    location = ("Location", verdict.login_url)
    if not verdict.body:
        return _reply(HTTPStatus.FOUND, None, "", (("location", verdict.login_url),))
    phrases, url = PHRASES[Language.ENGLISH], escape(verdict.login_url)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{phrases.sign_in}</title></head>
<body><p><a href="{url}">{phrases.link}</a></p></body>
</html>
"""
    return _html(HTTPStatus.FOUND, page, (location, ("Content-Language", Language.ENGLISH.value)))


def _in_english(status: HTTPStatus, said: str, fields: Fields = ()) -> Reply:
    """A line of plain English text, for faults. mitmproxy answers so if it cannot connect."""
    text = f"{status.value} {status.phrase}: {said}\n"
    return _reply(status, "text/plain; charset=utf-8", text, fields)


def _imitated(verdict: Imitated) -> Reply:
    """What another kind of portal sends: without `no-store` and the other fields that we add."""
    # Without a status, the answer is a TCP reset. HTTP/2 has nothing like it, so it gets a 502.
    status = HTTPStatus(verdict.status or HTTPStatus.BAD_GATEWAY)
    length = ("Content-Length", str(len(verdict.body)))
    return Reply(status.value, status.phrase, (*verdict.fields, length), verdict.body)


def _html(status: HTTPStatus, page: str, fields: Fields) -> Reply:
    closed = ("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
    return _reply(status, "text/html; charset=utf-8", page, (*fields, closed))


def _reply(status: HTTPStatus, content_type: str | None, text: str, fields: Fields) -> Reply:
    # YAML can contain half a character ("\ud800"). A question mark is better than no 511.
    body = text.encode("utf-8", "replace")
    content: Fields = (("Content-Type", content_type),) if content_type else ()
    return Reply(
        status.value,
        status.phrase,
        (
            *content,
            ("Content-Length", str(len(body))),
            *fields,
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            # The login server need not know which site the client asked for.
            ("Referrer-Policy", "no-referrer"),
        ),
        body,
    )
