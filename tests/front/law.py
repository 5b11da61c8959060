"""For tests of the front: the two ways that are compared, and what clients send.

The law is in test_law.py.
"""

from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from capport.core.client import Client, Peer
from capport.core.place import Place
from capport.core.reach import Machine
from capport.front.conversation import ESTABLISHED, Alert, Answer, Conversation, HandOver
from capport.gate import Gate
from capport.policy import policy_file
from capport.stores.memory import MemoryStore
from front.strict import Strict, undated
from proxy import hellos

PEER = Peer(ip_address("198.51.100.7"))
OWN = ip_address("192.0.2.1")

GARDEN = """
login_url: https://login.example.net/
walled_garden: [www.example.org, "*.example.org", "status.example.org:8080", 192.0.2.53, 192.0.2.1]
"""
POLICIES = {
    "a garden": GARDEN,
    "a state": GARDEN.replace("net/", "net/in?s={state}") + "network: Lab <Wi-Fi>\n",
    "our login server": "login_server: {listen: 192.0.2.1:8511}\nrefresh: never\n",
    "strict probes": GARDEN + "probes: strict\n",
    "limits": GARDEN + "limits: {header_field: 256, header_section: 1KiB}\n",
    # A CONNECT that got a tunnel, and is handed over after that, counts twice.
    "a rate": GARDEN + "limits: {unknown_requests: {count: 2, per: 1m}}\ntls: {connect: answer}\n",
    "CONNECT is answered": GARDEN + "tls: {connect: answer}\n",
    "CONNECT gets an alert": GARDEN + "tls: {connect: alert}\n",
    "TLS is dropped": GARDEN + "tls: {connect: alert, unknown: drop}\n",
    "TLS is intercepted": GARDEN + "tls: {connect: alert, unknown: intercept}\n",
    "a blocked client": GARDEN + "clients: [{address: 198.51.100.7, access: blocked}]\n",
}
READ = {name: policy_file.parse(text, name, Path()) for name, text in POLICIES.items()}


def state(_: Client, page: str | None) -> str:
    """A state that shows what it was made for, so both ways make the same one."""
    return urlsafe_b64encode((page or "-").encode()).decode().rstrip("=")


def gate(policy: str) -> Gate:
    read = READ[policy]
    return Gate(
        read,
        MemoryStore(),
        now=lambda: 1000.0,
        machine=Machine(frozenset({OWN}), frozenset({8080})),
        state=state,
        answering={login.place: ip_address("192.0.2.80") for login in read.logins},
    )


@dataclass
class Outcome:
    """The outcome of a connection."""

    sent: bytes = b""
    passes: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    was_reset: bool = False


def by_the_layers(policy: str, dialled: Place | None, pieces: list[bytes]) -> Outcome:
    it = Strict(gate(policy), PEER, dialled).receive(*pieces)
    return Outcome(undated(it.sent), it.passes, it.reports, it.ended, it.book.was_reset)


def by_the_front(
    policy: str, dialled: Place | None, pieces: list[bytes], count: Counter[str]
) -> Outcome:
    """The front, followed by the layers if it hands over."""
    asked, got = gate(policy), Outcome()
    it = Conversation(asked, PEER, dialled)
    for at, piece in enumerate(pieces):
        act = it.receive(piece)
        while act is not None and not isinstance(act, HandOver):
            count[kind_of(act)] += 1
            got.sent += undated(act.data)
            got.reports += reported(act)
            if act.close:
                got.ended, got.was_reset = True, not act.data
                return got
            act = it.receive()
        if act is not None:
            count["handed over"] += 1
            first = [act.connect] if act.connect else []
            rest = Strict(asked, PEER, dialled, act).receive(*first, act.data, *pieces[at + 1 :])
            skipped = ESTABLISHED if act.connect else b""
            assert rest.sent.startswith(skipped)
            got.sent += undated(rest.sent[len(skipped) :])
            got.reports += rest.reports
            got.passes, got.ended, got.was_reset = rest.passes, rest.ended, rest.book.was_reset
            return got
    return got


def kind_of(act: Answer | Alert) -> str:
    if isinstance(act, Alert):
        return "alert" if act.data else "reset"
    return f"{act.status} to {'CONNECT' if act.request.asked.method == 'CONNECT' else 'a request'}"


def reported(act: Answer | Alert) -> Iterator[dict[str, Any]]:
    """The event that is to be made of it."""
    if isinstance(act, Alert):
        shown = {
            "event": "tls",
            "client": act.client,
            "sni": act.hello.sni,
            "destination": str(act.dialled),
            "because": act.verdict.because,
        }
    elif act.status == 200 and not (act.request.cookies or act.request.authorizations):
        return
    else:
        shown = {
            "event": "refused",
            "client": act.client,
            "status": act.status if act.status != 200 else None,
            "host": str(act.request.claim.host),
            "method": act.request.case.method,
            "cookies": act.request.cookies or None,
            "authorizations": act.request.authorizations or None,
            "because": act.verdict.because,
        }
    yield {name: value for name, value in shown.items() if value is not None}


def essential(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reports, without what the front leaves to its observer, and without h11's own texts."""
    dropped = {"action", "outcome", "caveat"}
    return [
        {
            name: "not read" if str(value).startswith("not read") else value
            for name, value in it.items()
            if name not in dropped
        }
        for it in reports
    ]


# What is sent: nearly valid requests, one after the other, and sometimes TLS.

HOSTS = [
    *("outside.example.com", "outside.example.com", "outside.example.com", "203.0.113.9"),
    *("www.example.org", "a.b.example.org", "login.example.net", "status.example.org"),
    *("127.0.0.1", "192.0.2.53", "192.0.2.1", "[2001:db8::1]", "[::1]"),
    *("connectivitycheck.gstatic.com", "captive.apple.com", "ipv4.connman.net"),
]
ODD_HOSTS = [
    *("OUTSIDE.example.com", "outside.example.com.", "www.example.org.", "a@www.example.org"),
    *(
        "",
        "127.1",
        "0x7f.1",
        "2130706433",
        "exa mple",
        "x" * 300,
        "ex\xe4mple.org",
        "[::1",
        "[::1%lo]",
    ),
    *("www.example.org:", ":80", "www.example.org:99999", "*.example.org", "www.example.org/x"),
    *("www.example.org,outside.example.com", "www.example.org\\@outside.example.com", "a..b", "-"),
]
PORTS = ["", "", "", "", "", ":80", ":443", ":8080", ":8511"]
PATHS = [
    *("/", "/", "/a?b=c#d", "/generate_204", "/hotspot-detect.html", "/online/status.html"),
]
ODD_PATHS = [
    *("//www.example.org/x", "/%00", "/" + "a" * 1200, "/\xff", "/a b", "/<script>"),
]
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "PROPFIND", "DELETE"]
ODD_METHODS = [
    "CONNECT",
    "get",
    "connect",
    "PRI",
    "M-SEARCH",
    "G\tET",
    "",
    "TRACE",
    "X" * 30,
    "\x16\x03\x01",
]
VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.10", ""]
FIELDS = [
    *("User-Agent: curl/8", "User-Agent: Mozilla/5.0 (X11)", "Accept: */*", "Accept: text/plain"),
    *("Accept: application/json", "Accept-Language: de", "Accept-Language: fr;q=0.5", "Accept:"),
    *("Connection: keep-alive", "Connection: close", "Connection: Upgrade", "connection: x, Close"),
    *(
        "Content-Length: 0",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
    ),
    *("Upgrade: websocket", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Proxy-Connection: close"),
    *("Cookie: a=b; c=d", "Authorization: Basic eDp5", "Proxy-Authorization: Basic eDp5", "X:y"),
    *("X-Forwarded-Host: www.example.org", "X: " + "y" * 300, "X: " + "y" * 1200, "X: \xe4"),
]
ODD_FIELDS = [
    *(
        " folded",
        "\tfolded",
        "X : y",
        "X: a\x00b",
        "X: a\rb",
        "X: a\x0bb",
        ": y",
        "X",
        "X: y ",
        "X: \t",
    ),
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    *("Content-Length: 5, 5", "Content-Length: +5", "Content-Length: 5 5", "Content-Length:"),
    *("Content-Length: 00000000000000000005", "Content-Length: -1", "Content-Length: \xb2"),
    *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding:"),
    *(
        "Transfer-Encoding: Chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding : chunked",
    ),
    *("Host : www.example.org", "Host\x00: www.example.org", "Connection: close\x0b", "X(: y"),
    *("X-Many: y\r\n" * 120 + "X: y", "X: " + "y" * 17_000, "X: " + "y" * 70_000, "X: y\n"),
]
BODIES = [b"", b"", b"", b"abcde", b"5\r\nabcde\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n"]


NOISE = [
    *(b"\r\n", b"\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n", b"\x05\x01\x00"),
    *(b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x00\x05hello", b"\x16\x03", b"EHLO x\r\n", b"\0" * 8),
]
WEB = Place(ip_address("203.0.113.9"), 80)
DIALLED = [
    None,
    None,
    WEB,
    *(Place(WEB.host, port) for port in (443, 8080)),
    Place(ip_address("192.0.2.53"), 80),
    Place(OWN, 80),
    Place(OWN, 8511),
]


SPICE = [b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\xff", b"A", b""]

type Pick = Callable[[Sequence[Any]], Any]
"""Picks one of the options, as hypothesis or a seed decides."""


def sent(pick: Pick) -> tuple[Place | None, list[bytes]]:
    """Where a client connects, and what it sends, in segments."""
    kinds = [request, request, request, request, tunnel, tunnel, handshake]
    parts = [pick(kinds)(pick) for _ in range(pick(range(1, 5)))]
    if pick(range(10)) == 9:
        parts.insert(pick(range(len(parts))), pick(NOISE))
    data = b"".join(parts)
    if pick(range(10)) == 9:  # one byte of it is another
        at = pick(range(min(len(data), 400)))
        data = data[:at] + pick(SPICE) + data[at + pick(range(2)) :]
    cuts = sorted({min(pick(range(1, 400)), len(data)) for _ in range(pick(range(4)))})
    edges = [0, *cuts, len(data)]
    return pick(DIALLED), [data[a:b] for a, b in pairwise(edges) if a < b]


def request(pick: Pick) -> bytes:
    """One request. Most are ordinary; of the others, one part is odd."""
    odd = pick([*[""] * 10, "host", "method", "target", "line", "field"])
    host = pick(ODD_HOSTS if odd == "host" else HOSTS) + pick(PORTS)
    method = pick(ODD_METHODS if odd == "method" else METHODS)
    path = pick(PATHS)
    target = pick([path, f"http://{host}{path}"])
    if odd == "target":
        forms = [
            *("*", f"HTTP://{host}{path}", f"https://{host}{path}", f"http://{host}", host, ""),
            *(f"http://{host}?x", f"http://u@{host}/", f"http://{pick(HOSTS)}{path}", *ODD_PATHS),
        ]
        target = pick(forms)
    fields = [pick(FIELDS) for _ in range(pick(range(6)))]
    fields.insert(pick(range(len(fields) + 1)), f"Host: {host}")
    if odd == "field":
        more = pick([*ODD_FIELDS, f"host: {host}", "host: www.example.org"])
        fields.insert(pick(range(len(fields) + 1)), more)
    version = pick(VERSIONS) if odd == "line" else "HTTP/1.1"
    end = pick(["\r\n", "\r\n", "\n", "\r"]) if odd == "line" else "\r\n"
    body: bytes = pick(BODIES) if odd or pick(range(2)) else b""
    return (end.join([f"{method} {target} {version}", *fields]) + end + end).encode(
        "latin-1"
    ) + body


def tunnel(pick: Pick) -> bytes:
    """A CONNECT, and what is sent in the tunnel."""
    at = pick(HOSTS) + pick([":443", ":443", ":80", ":8080", ""])
    host = pick([at, at, at, at.rpartition(":")[0], "www.example.org:443"])
    fields = [f"Host: {host}", f"User-Agent: {pick(['Mozilla/5.0', 'curl/8'])}"]
    fields.insert(pick(range(3)), pick(FIELDS))
    inside: bytes = pick([handshake, handshake, request])(pick)
    return "\r\n".join([f"CONNECT {at} HTTP/1.1", *fields, "", ""]).encode("latin-1") + inside


def handshake(pick: Pick) -> bytes:
    """A ClientHello, in one record or several."""
    names = [b"outside.example.com", b"www.example.org", b"login.example.net", b"a..b"]
    found = [pick(names) for _ in range(pick([0, 1, 1, 1, 2]))]
    inside = [hellos.server_name(*found)] if found else []
    hello = hellos.records(hellos.message(*inside), pick([2**14, 2**14, 2**14, 20]))
    version: bytes = pick([b"\x01", b"\x01", b"\x03"])
    return hello[:2] + version + hello[3:]


@st.composite
def connections(draw: st.DrawFn) -> tuple[Place | None, list[bytes]]:
    """What hypothesis chooses to send."""
    return sent(lambda options: draw(st.sampled_from(options)))


def holds(policy: str, sent: tuple[Place | None, list[bytes]], count: Counter[str]) -> None:
    expected = by_the_layers(policy, *sent)
    assert_same(by_the_front(policy, *sent, count), expected)


def assert_same(got: Outcome, expected: Outcome) -> None:
    """Checks that the front did what the layers do."""
    assert replace(got, reports=[]) == replace(expected, reports=[])
    assert essential(got.reports) == essential(expected.reports)
