"""RFC 6585 sections 6, 6.1, 7.4 and appendix B: what they ask of a portal that runs."""

import asyncio
import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conftest import LOGIN, Origin, Portal, StartPortal
from proxy.hellos import trusting_none
from proxy.wire import Answer, Dialled, answers, say, with_names

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"


@dataclass(frozen=True)
class Request:
    """Requests of programs that no person watches."""

    method: str
    url: str
    fields: str = ""
    body: str = ""

    def on_the_wire(self, mode: str) -> bytes:
        parts = urlsplit(self.url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        target = self.url if mode == "regular" else path
        length = f"Content-Length: {len(self.body)}\r\n" if self.body else ""
        head = f"{self.method} {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{self.fields}{length}"
        return f"{head}\r\n{self.body}".encode()


PAGE = Request("GET", "http://www.example.com/index.html", "Accept: text/html\r\n")

# Appendix B, and other programs that speak HTTP without a person.
UNATTENDED = {
    "favicon": Request("GET", "http://www.example.com/favicon.ico", "Accept: image/*\r\n"),
    "P3P": Request("GET", "http://www.example.com/w3c/p3p.xml"),
    "WebFinger": Request(
        "GET",
        "http://www.example.com/.well-known/webfinger?resource=acct%3Aa%40example.com",
        "Accept: application/jrd+json\r\n",
    ),
    "CORS preflight": Request(
        "OPTIONS",
        "http://api.example.com/things",
        "Origin: http://www.example.com\r\nAccess-Control-Request-Method: PUT\r\n"
        "Access-Control-Request-Headers: x-token\r\n",
    ),
    "CORS": Request("GET", "http://api.example.com/", "Origin: http://www.example.com\r\n"),
    "WebDAV": Request(
        "PROPFIND",
        "http://dav.example.com/calendars/",
        "Depth: 1\r\nContent-Type: application/xml\r\n",
        '<?xml version="1.0"?><propfind xmlns="DAV:"><allprop/></propfind>',
    ),
    "CalDAV": Request("REPORT", "http://dav.example.com/calendars/a/", "Depth: 1\r\n", "<x/>"),
    "OAuth": Request(
        "POST",
        "http://auth.example.com/token",
        "Content-Type: application/x-www-form-urlencoded\r\nAuthorization: Basic c2VjcmV0\r\n",
        "grant_type=authorization_code&code=abc",
    ),
    "a feed": Request("GET", "http://www.example.com/feed.xml", 'If-None-Match: "a"\r\n'),
    "a widget": Request("GET", "http://www.example.com/w.json", "Accept: application/json\r\n"),
    "apt": Request(
        "GET",
        "http://deb.example.org/debian/dists/stable/InRelease",
        "User-Agent: Debian APT-HTTP/1.3 (2.6.1)\r\nAccept: text/*\r\nCache-Control: max-age=0\r\n",
    ),
    "an update check": Request("HEAD", "http://updates.example.com/v2", 'If-None-Match: "a"\r\n'),
    "OCSP": Request(
        "POST", "http://ocsp.example.com/", "Content-Type: application/ocsp-request\r\n", "x"
    ),
    "a script": Request("GET", "http://cdn.example.com/a.js", "Sec-Fetch-Dest: script\r\n"),
    "a range": Request("GET", "http://cdn.example.com/a.iso", "Range: bytes=0-99\r\n"),
}  # fmt: skip

both_ways = pytest.mark.parametrize("mode", ["regular", "transparent"])
each_one = pytest.mark.parametrize("name", UNATTENDED)


async def ask(it: Portal, mode: str, request: Request) -> Answer:
    if request.method == "HEAD":
        streams = await asyncio.open_connection("127.0.0.1", it.port)
        data = await say(streams, request.on_the_wire(mode))
    else:
        data = await it.ask(request.on_the_wire(mode))
    (answer,) = answers(data, request.method)
    return answer


@pytest.mark.rfc(6585, "6", "the client needs to authenticate to gain network access")
@both_ways
async def test_6_the_client_needs_to_authenticate_to_gain_network_access(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode=mode) as it:
        answer = await ask(it, mode, PAGE)
        assert answer.status == 511
        it.grant("127.0.0.1")
        place = f"http://127.0.0.1:{origin.port}/"
        assert (await ask(it, mode, Request("GET", place))).status == 200
        it.revoke("127.0.0.1")
        assert (await ask(it, mode, Request("GET", place))).status == 511
    assert origin.connections == 1


@pytest.mark.rfc(
    6585,
    "6",
    "SHOULD contain a link to a resource that allows the user to submit credentials",
)
@both_ways
async def test_6_should_contain_a_link_to_where_to_submit_credentials(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode=mode) as it:
        answer = await ask(it, mode, PAGE)
        assert f'<a href="{LOGIN}">'.encode() in answer.body
        assert f"0; url={LOGIN}".encode() in answer.body or b'http-equiv="refresh"' in answer.body


@pytest.mark.rfc(6585, "6", "SHOULD NOT contain a challenge or the login interface itself")
async def test_6_should_not_contain_a_challenge_or_the_login_interface_itself(
    portal: StartPortal,
) -> None:
    async with portal() as it:
        for request in (PAGE, *UNATTENDED.values()):
            answer = await ask(it, "regular", request)
            assert {"www-authenticate", "proxy-authenticate"}.isdisjoint(answer.fields)
            assert not re.search(rb"<(form|input|button|script|iframe)\b", answer.body)


@pytest.mark.rfc(6585, "6", "MUST NOT be stored by a cache")
async def test_6_must_not_be_stored_by_a_cache(portal: StartPortal) -> None:
    async with portal() as it:
        for request in (PAGE, *UNATTENDED.values()):
            answer = await ask(it, "regular", request)
            assert answer.order.count("cache-control") == 1
            assert answer.fields["cache-control"] == "no-store"
            assert {"etag", "last-modified", "expires", "age"}.isdisjoint(answer.fields)


@pytest.mark.rfc(6585, "6", "SHOULD NOT be generated by origin servers")
async def test_6_should_not_be_generated_by_origin_servers_and_is_not_in_their_place(
    portal: StartPortal, origin: Origin
) -> None:
    """A known client gets the origin's answer unchanged, even if that is a 511."""
    own = b"HTTP/1.1 511 Mine\r\nX-Own: yes\r\nContent-Length: 3\r\n\r\nown"
    origin.answer = own
    async with portal(KNOWN) as it:
        answer = await ask(it, "regular", Request("GET", f"http://127.0.0.1:{origin.port}/"))
        assert (answer.status, answer.body, answer.fields["x-own"]) == (511, b"own", "yes")


@pytest.mark.rfc(6585, "6.1", "the META HTML element redirects the user agent to the login server")
async def test_6_1_a_browser_is_shown_the_way_to_a_host_that_is_not_the_origin(
    portal: StartPortal,
) -> None:
    async with portal("login_url: https://login.example.net/\nrefresh: 0\n") as it:
        answer = await ask(it, "regular", PAGE)
        assert f'http-equiv="refresh" content="0; url={LOGIN}"'.encode() in answer.body
        assert b"www.example.com" not in answer.body
        assert urlsplit(LOGIN).hostname != urlsplit(PAGE.url).hostname


@pytest.mark.rfc(
    6585,
    "6.1",
    "all traffic blocked, except for TCP port 80 and traffic to the login server itself",
)
@both_ways
async def test_6_1_the_login_server_itself_is_reached_without_a_session(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    for host, at in (("127.0.0.1", "127.0.0.1"), ("login.example.net", "192.0.2.80")):
        dialled(at, origin.port)
        login = f"http://{host}:{origin.port}/"
        async with portal(f"login_url: {login}\n", mode=mode) as it:
            with_names(it, "login.example.net")
            data = await it.talk(Request("GET", f"{login}?a=b").on_the_wire(mode))
            assert answers(data)[0].status == 200
        # The portal asks the login server with HEAD whether it answers.
        assert any(head.startswith(b"GET /?a=b HTTP/1.1\r\n") for head in origin.heads)
        origin.heads.clear()


@pytest.mark.rfc(6585, "7.4", "may be observing cookies or HTTP authentication credentials")
@pytest.mark.parametrize("mode", ["regular", "transparent"])
async def test_7_4_credentials_for_the_origin_are_counted_and_never_kept(
    portal: StartPortal, origin: Origin, dialled: Dialled, tmp_path: Path, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    fields = (
        "Cookie: id=secret1; c=secret4\r\nCookie: b=secret2\r\nAuthorization: Bearer secret3\r\n"
    )
    saved = tmp_path / "flows"
    async with portal(mode=mode, events=True, save_stream_file=str(saved)) as it:
        answer = await ask(it, mode, Request("GET", PAGE.url, fields))
        assert b"secret" not in answer.body
        await asyncio.to_thread(it.gate.events.close)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert (refused["cookies"], refused["authorizations"]) == (3, 1)
    assert refused["host"] in {"www.example.com", "127.0.0.1"}
    assert b"secret" not in saved.read_bytes()
    assert b"secret" not in (tmp_path / "events.jsonl").read_bytes()
    assert origin.connections == 0


@pytest.mark.rfc(6585, "7.4", "may be inserting cookies into the original domain's name space")
async def test_7_4_no_cookie_is_set_in_the_name_of_the_origin(portal: StartPortal) -> None:
    async with portal() as it:
        for request in (PAGE, *UNATTENDED.values()):
            answer = await ask(it, "regular", request)
            assert {"set-cookie", "strict-transport-security"}.isdisjoint(answer.fields)


@pytest.mark.rfc(6585, "7.4", "will generate a certificate error on the client")
async def test_7_4_tls_is_refused_without_a_certificate_by_default(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    """So a client that checks certificates finds no certificate error."""
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        with pytest.raises(ssl.SSLError, match=r"(?i)alert access denied") as refused:
            await asyncio.open_connection(
                "127.0.0.1", it.port, ssl=trusting_none(), server_hostname="www.example.com"
            )
        assert not isinstance(refused.value, ssl.SSLCertVerificationError)
    assert origin.connections == 0


@pytest.mark.rfc(6585, "B", "other non-browser applications can be affected as well")
@pytest.mark.rfc(
    6585,
    "B",
    "since many of these uses follow redirects, this is not a good solution",
)
@each_one
@both_ways
async def test_b_no_program_can_take_the_portal_for_the_origin(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str, name: str
) -> None:
    """No success, no redirect that it would follow, and no body that it would believe."""
    dialled("127.0.0.1", origin.port)
    async with portal(mode=mode) as it:
        answer = await ask(it, mode, UNATTENDED[name])
        assert answer.status == 511
        assert {"location", "refresh"}.isdisjoint(answer.fields)
        assert not [field for field in answer.fields if field.startswith("access-control-")]
        assert answer.fields["x-content-type-options"] == "nosniff"
        kind = answer.fields["content-type"].partition(";")[0]
        assert kind in {"text/html", "text/plain", "application/problem+json"}
        assert not answer.body.startswith((b"-----BEGIN", b"<?xml", b'{"subject"'))
    assert origin.connections == 0


@pytest.mark.rfc(6585, "B", "favicon.ico will often stick in the browser's cache")
async def test_b_a_favicon_is_no_image(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await ask(it, "regular", UNATTENDED["favicon"])
        assert not answer.fields["content-type"].startswith("image/")


@pytest.mark.rfc(6585, "B", "a portal's response for the p3p.xml file, WebFinger, CORS, OAuth")
async def test_b_webfinger_finds_nobody(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await ask(it, "regular", UNATTENDED["WebFinger"])
        assert answer.fields["content-type"].partition(";")[0] != "application/jrd+json"
        if answer.fields["content-type"].startswith("application/problem+json"):
            assert json.loads(answer.body)["login_url"] == LOGIN


@pytest.mark.rfc(6585, "B", "a portal's response for the p3p.xml file, WebFinger, CORS, OAuth")
async def test_b_a_preflight_allows_nothing(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await ask(it, "regular", UNATTENDED["CORS preflight"])
        assert "access-control-allow-origin" not in answer.fields
        assert "allow" not in answer.fields


@pytest.mark.rfc(6585, "B", "a portal's response for the p3p.xml file, WebFinger, CORS, OAuth")
async def test_b_p3p_is_no_policy_of_the_origins(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await ask(it, "regular", UNATTENDED["P3P"])
        assert answer.fields["content-type"].startswith("text/html")
        assert "p3p" not in answer.fields


@pytest.mark.rfc(6585, "B", "WebDAV and CalDAV: spurious errors, content corruption")
async def test_b_webdav_learns_nothing_of_its_collection(portal: StartPortal) -> None:
    async with portal() as it:
        for name in ("WebDAV", "CalDAV"):
            answer = await ask(it, "regular", UNATTENDED[name])
            assert answer.status == 511  # and neither 207 nor 404, on which it would delete
            assert "dav" not in answer.fields


@pytest.mark.rfc(6585, "B", "a portal's response for the p3p.xml file, WebFinger, CORS, OAuth")
async def test_b_oauth_hears_neither_a_token_nor_an_error_of_its_own(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await ask(it, "regular", UNATTENDED["OAuth"])
        assert b"access_token" not in answer.body
        assert b'"error"' not in answer.body
