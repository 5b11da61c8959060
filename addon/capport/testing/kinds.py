"""The kinds of portal that an app may meet, and what each does with HTTP, TLS and DNS.

Few real portals send 511, so an app must withstand the others too. They exist here and
in the lab alone: a policy cannot ask for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from capport.core.policy import UnknownTls
from capport.core.verdict import Imitated, NetworkAuthenticationRequired, SignIn
from capport.report.portal_traces import COOKIE, ETAG, FOLDER

OURS = "511"

_HTML = ("Content-Type", "text/html; charset=utf-8")


@dataclass(frozen=True, slots=True)
class PortalKind:
    """One kind. `tls` replaces the policy's `tls.unknown`; `answer` replaces the 511.

    Behind a kind that `vanishes`, packets do; one that `lies` answers for every name. `needs` says
    why a kind takes a network namespace, where the portal is the whole network.
    """

    name: str
    about: str
    tls: UnknownTls | None = None
    answer: Callable[[str], Imitated] | None = None
    vanishes: bool = False
    lies: bool = False
    needs: str | None = None

    def imitate(self, verdict: NetworkAuthenticationRequired | SignIn) -> Imitated:
        """The answer of this kind, in place of ours."""
        assert self.answer is not None
        answer = self.answer(verdict.login_url)
        because = f"{verdict.because}; a portal of the kind {self.name} answers so"
        return Imitated(because, answer.status, answer.fields, answer.body)


def _redirect(login_url: str) -> Imitated:
    page = f'<html><body><a href="{escape(login_url)}">Sign in</a></body></html>\n'
    return Imitated("", 302, (("Location", login_url), _HTML), page.encode())


def _page(login_url: str) -> Imitated:
    # With what such portals add without care, all of it in the origin's name.
    page = (
        "<!DOCTYPE html>\n<html><head><title>Welcome to our Wi-Fi</title></head><body>\n"
        f'<img src="{FOLDER}logo.png" alt=""><h1>Please sign in</h1>\n'
        f'<form method="post" action="{escape(login_url)}"><button>Accept</button></form>\n'
        "</body></html>\n"
    )
    careless = (("ETag", ETAG), ("Set-Cookie", f"{COOKIE}=1; Path=/"))
    return Imitated("", 200, (_HTML, *careless), page.encode())


def _script(login_url: str) -> Imitated:
    # FortiGate's answer has this form.
    script = f'<script language="JavaScript">window.location="{escape(login_url)}";</script>'
    return Imitated("", 200, (_HTML,), f"<html><body>{script}</body></html>\n".encode())


def _reset(login_url: str) -> Imitated:
    return Imitated("")


_RESET_TLS = UnknownTls.DROP

KINDS = {
    kind.name: kind
    for kind in (
        PortalKind(OURS, "511 with a link (RFC 6585); TLS as the policy says"),
        PortalKind("redirect", "302 to the sign-in page; TLS is reset", _RESET_TLS, _redirect),
        PortalKind("page", "200 and the sign-in page itself; TLS is reset", _RESET_TLS, _page),
        PortalKind("script", "200 and a script that goes on; TLS is reset", _RESET_TLS, _script),
        PortalKind(
            "forged-tls",
            "302, also inside TLS, with a certificate of its own for every name",
            UnknownTls.INTERCEPT,
            _redirect,
        ),
        PortalKind(
            "silent",
            "names resolve, and every other packet vanishes",
            vanishes=True,
            needs="only in a network of its own can a portal make packets vanish",
        ),
        PortalKind(
            "dns-lie",
            "every name leads to the portal: 302 to the sign-in page; TLS is reset",
            _RESET_TLS,
            _redirect,
            lies=True,
            needs="only in a network of its own can a portal answer for every name",
        ),
        PortalKind(
            "reset",
            "every connection is reset when the client has sent something",
            _RESET_TLS,
            _reset,
        ),
    )
}


def kind_named(name: str) -> PortalKind:
    """The kind with this name. Raises ValueError that names all of them."""
    try:
        return KINDS[name]
    except KeyError:
        raise ValueError(
            f"{name!r} is not a kind of portal: use one of {', '.join(KINDS)}"
        ) from None
