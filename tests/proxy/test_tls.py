"""TLS of unknown clients is refused, dropped or intercepted, and no origin gets anything of it."""

import asyncio
import contextlib
import re
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy.connection import ConnectionState
from mitmproxy.http import HTTPFlow
from mitmproxy.tls import ClientHello

import requires
from capport.front.hello import (
    CIPHERS,
    HELLO,
    ITEMS,
    SHOWN,
    HelloReader,
    read_hello,
)
from capport.proxy import connections
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from proxy.hellos import (
    ALERT_49,
    BROKEN,
    ECH,
    RECORD,
    WHOLE,
    extension,
    message,
    over_tls,
    real,
    records,
    server_name,
    trusting_all,
)
from proxy.tls import TlsOrigin, check_the_certificate, connected
from proxy.wire import (
    GARDEN,
    OUTSIDE,
    Dialled,
    Streams,
    garden,
    until,
    with_names,
)

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
ALERT = "tls: {connect: alert}\n"
ELSEWHERE = "192.0.2.1"


@dataclass
class Recorded:
    """The events of a portal as it writes them, before repeated ones are only counted."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [it for it in self.events if it["event"] == event]

    async def one(self, event: str) -> dict[str, Any]:
        """The only event of this kind; fails if there is none, or a second one."""
        await until(lambda: bool(self.of(event)))
        await asyncio.sleep(0.1)
        (recorded,) = self.of(event)
        return recorded


def listened(it: Portal, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    before = it.gate.events.write

    def write(event: str, client: Any = None, **fields: Any) -> None:
        recorded.events.append({"event": event, "client": client, **fields})
        before(event, client, **fields)

    monkeypatch.setattr(it.gate.events, "write", write)
    return recorded


async def raw(streams: Streams, *pieces: bytes, timeout: float | None = None) -> bytes:
    """All that comes back for `pieces`."""
    reader, writer = streams
    try:
        await send(writer, *pieces)
        return await until_closed(reader, timeout)
    finally:
        writer.close()


async def first_byte(streams: Streams, *pieces: bytes) -> bytes:
    """The first byte that comes back for `pieces`; none if the other end closes."""
    reader, writer = streams
    try:
        await send(writer, *pieces)
        return await asyncio.wait_for(reader.read(1), SOON)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def send(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    """Sends each in a segment of its own, if possible, until the other end closes."""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


each_mode = pytest.mark.parametrize("mode", ["transparent", "regular", "socks5"])

# --- refuse, drop ---------------------------------------------------------------------------------


@each_mode
async def test_an_unknown_clients_handshake_ends_with_alert_49(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(ALERT, mode=mode) as it:
        recorded = listened(it, monkeypatch)
        with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_ACCESS_DENIED"):
            await over_tls(await connected(it, mode, origin.port))
        event = await recorded.one("tls")
        assert event["sni"] == OUTSIDE
        assert event["destination"] == f"127.0.0.1:{origin.port}"
        assert (event["action"], event["outcome"]) == ("refuse", "refused")
        assert "no session" in event["because"]
        assert event["caveat"] is None
        (shown,) = it.flows.streams
        assert shown.marked == ":no_entry:"
        assert OUTSIDE in shown.comment
        assert shown.metadata["portal"]["verdict"] == "Refuse"
    assert origin.connections == 0


@requires.tool("curl", "wget")
async def test_each_client_says_that_access_was_denied(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        url = f"https://localhost:{it.port}/"
        status, said = await run("curl", "-sS", "--noproxy", "*", "--max-time", "60", url)
        assert status == 35, said
        assert "access denied" in said
        status, said = await run("openssl", "s_client", "-connect", f"127.0.0.1:{it.port}")
        assert status == 1, said
        assert "alert access denied" in said
        assert "no peer certificate available" in said
        status, said = await run("wget", "--no-proxy", "-t", "1", "-T", "60", "-O", "-", url)
        assert status == 4, said
        assert "Access was denied" in said or "access denied" in said
    assert origin.connections == 0


async def run(*command: str) -> tuple[int, str]:
    """The exit status of `command`, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 2 * SOON)
    assert process.returncode is not None
    return process.returncode, said.decode("utf-8", "replace")


@each_mode
async def test_a_dropped_handshake_ends_with_a_reset(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal("tls: {unknown: drop, connect: alert}\n", mode=mode) as it:
        recorded = listened(it, monkeypatch)
        with pytest.raises(ConnectionResetError):
            await over_tls(await connected(it, mode, origin.port))
        event = await recorded.one("tls")
        assert (event["action"], event["outcome"]) == ("drop", "dropped")
    assert origin.connections == 0


# --- hellos of all kinds --------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["refuse", "intercept"])
async def test_no_hello_of_an_unknown_client_leaves(
    portal: StartPortal, origin: Origin, dialled: Dialled, unknown: str
) -> None:
    dialled("127.0.0.1", origin.port)

    async def one(it: Portal, name: str, pieces: list[bytes]) -> None:
        streams = await connected(it, "transparent", 0)
        if unknown == "refuse":
            assert await raw(streams, *pieces) == ALERT_49, name
        else:
            got = await first_byte(streams, *pieces)
            assert got in (b"", b"\x15", b"\x16"), (name, got)  # closed, an alert, or a handshake

    async with (
        portal(f"tls: {{unknown: {unknown}}}\n", mode="transparent") as it,
        asyncio.TaskGroup() as group,
    ):
        for name, hello in WHOLE.items():
            for cut in ([], [1, 2], [60]):
                pieces = [hello[a:b] for a, b in pairwise([0, *cut, len(hello)])]
                group.create_task(one(it, name, pieces))
    assert origin.connections == 0


@pytest.mark.parametrize("unknown", ["refuse", "intercept"])
async def test_what_only_begins_like_tls_is_refused(
    portal: StartPortal, origin: Origin, dialled: Dialled, unknown: str
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(f"tls: {{unknown: {unknown}}}\n", mode="transparent") as it:
        for name, data in BROKEN.items():
            assert await raw(await connected(it, "transparent", 0), data) == ALERT_49, name
    assert origin.connections == 0


@pytest.mark.parametrize("unknown", ["refuse", "drop", "intercept"])
async def test_the_event_of_an_ech_hello_says_that_the_name_may_be_the_outer_one(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    unknown: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(f"tls: {{unknown: {unknown}}}\n", mode="transparent") as it:
        recorded = listened(it, monkeypatch)
        await raw(await connected(it, "transparent", 0), WHOLE["with ECH"], timeout=0.5)
        event = await recorded.one("tls")
        assert event["sni"] == "public.example.net"
        assert "outer name" in event["caveat"]
        assert ("7.4" in event["caveat"]) == (unknown == "intercept")


async def test_a_hello_in_pieces_and_records_of_one_byte_is_a_hello(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    hello = message(server_name(OUTSIDE.encode()))
    async with portal(mode="transparent") as it:
        sent = records(hello, 1)
        pieces = (sent[at : at + 1] for at in range(len(sent)))
        assert await raw(await connected(it, "transparent", 0), *pieces) == ALERT_49
        (shown,) = it.flows.streams
        assert OUTSIDE in shown.comment
    assert origin.connections == 0


async def test_a_hello_that_never_ends_meets_the_deadline(
    portal: StartPortal, origin: Origin, dialled: Dialled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    dialled("127.0.0.1", origin.port)
    hello = records(message(extension(21, b"\x00" * 30_000)))
    async with portal(mode="transparent") as it:
        reader, writer = await connected(it, "transparent", 0)
        gone = asyncio.create_task(until_closed(reader))
        with contextlib.suppress(ConnectionError):
            for at in range(len(hello) - 1):
                writer.write(hello[at : at + 1])
                await writer.drain()
                if gone.done():
                    break
                await asyncio.sleep(0.02)
        await gone
        writer.close()
    assert origin.connections == 0


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30), st.integers(1, 50))
def test_a_hello_is_read_the_same_however_it_is_cut(
    padding: bytes, cuts: list[int], size: int
) -> None:
    hello = message(server_name(OUTSIDE.encode()), extension(21, padding))
    sent, reader, found = records(hello, size) + b"more", HelloReader(), None
    for cut in [*cuts, len(sent)]:
        piece, sent = sent[:cut], sent[cut:]
        found = found or reader.feed(piece)
    assert found is not None
    assert found.sni == found.server_name == OUTSIDE
    assert reader.raw.startswith(records(hello, size)[:10])


@given(st.binary(max_size=400), st.integers(0, 200), st.integers(0, 60))
@example(noise=b"\0\n\x1b", at=58, size=3)  # in the name
def test_whatever_comes_is_a_hello_or_none_or_an_error(noise: bytes, at: int, size: int) -> None:
    hello = message(server_name(OUTSIDE.encode()), extension(16, b"\x00\x03\x02h2"))
    mangled = hello[:at] + noise + hello[at + size :]
    for sent in (
        RECORD + noise,
        records(mangled),
        records(b"\x01" + len(mangled).to_bytes(3) + mangled),
    ):
        with contextlib.suppress(ValueError):
            if found := HelloReader().feed(sent):
                assert found.sni is None or found.sni.isprintable()


name_in = st.one_of(
    st.sampled_from([b"www.example.org", b"WWW.EXAMPLE.ORG.", b"192.0.2.1", b"a_b.test"]),
    st.from_regex(rb"[a-z0-9-]{1,40}(\.[a-z0-9-]{1,40}){0,4}", fullmatch=True),
)


@given(
    name=st.none() | name_in,
    protocols=st.lists(st.binary(min_size=1, max_size=40), max_size=ITEMS),
    others=st.dictionaries(st.integers(17, 0xFFFF), st.binary(max_size=40), max_size=ITEMS - 2),
    ciphers=st.lists(st.binary(min_size=2, max_size=2), min_size=1, max_size=CIPHERS),
    bare=st.booleans(),
)
def test_a_hello_is_read_as_mitmproxy_reads_it(
    name: bytes | None,
    protocols: list[bytes],
    others: dict[int, bytes],
    ciphers: list[bytes],
    bare: bool,
) -> None:
    said = [extension(kind, body) for kind, body in others.items()]
    if name is not None:
        said.append(server_name(name))
    if protocols:
        listed = b"".join(bytes([len(it)]) + it for it in protocols)
        said.append(extension(16, len(listed).to_bytes(2) + listed))
    body = message(*([] if bare else said), ciphers=b"".join(ciphers))[4:]
    ours, theirs = read_hello(body), ClientHello(body)
    assert ours.server_name == ours.sni
    assert list(ours.protocols) == theirs.alpn_protocols
    assert ours.has_ech == (ECH in dict(theirs.extensions))
    if theirs.sni is not None:  # None if mitmproxy does not take it for a host name
        assert ours.server_name == theirs.sni
    assert (ours.sni is None) == (0 not in dict(theirs.extensions))


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 8))
def test_what_is_a_hello_here_is_one_to_mitmproxy(noise: bytes, at: int, size: int) -> None:
    said = (server_name(OUTSIDE.encode()), extension(16, b"\x00\x03\x02h2"))
    whole = message(*said, extension(ECH, b"e" * 9))[4:]
    body = whole[:at] + noise + whole[at + size :]
    with contextlib.suppress(ValueError):
        ours = read_hello(body)
        theirs = ClientHello(body)
        assert list(ours.protocols) == theirs.alpn_protocols
        assert theirs.sni in (None, ours.server_name)
        assert len(dict(theirs.extensions)) == len(theirs.extensions)


def test_no_more_of_an_sni_is_shown_than_two_hundred_characters() -> None:
    hello = read_hello(message(server_name(b"a" * 30_000, b"\xff" * 30_000))[4:])
    assert hello.server_name is None
    assert hello.sni is not None
    assert len(hello.sni) == SHOWN


def test_a_hello_costs_the_same_for_each_of_its_bytes() -> None:
    reader = HelloReader()
    sent = records(b"\x01" + (7_500).to_bytes(3) + b"x" * 7_500, 64)[:-1]
    assert HELLO - 1000 < len(sent) < HELLO
    began = time.process_time()
    for at in range(len(sent)):
        reader.feed(sent[at : at + 1])
    assert time.process_time() - began < 20  # 0.3 s; mitmproxy's own reader needs 400 s


# --- intercept ------------------------------------------------------------------------------------

INTERCEPT = "tls: {unknown: intercept, connect: alert}\n"


@each_mode
async def test_a_client_that_takes_the_certificate_gets_the_511_inside(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode=mode) as it:
        recorded = listened(it, monkeypatch)
        reader, writer = await connected(it, mode, origin.port)
        inside = await over_tls((reader, writer))
        assert "mitmproxy" in issuer(inside)
        writer.write(f"GET /x HTTP/1.1\r\nHost: {OUTSIDE}\r\nCookie: a=b\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 511 ")
        event = await recorded.one("tls")
        assert (event["sni"], event["action"]) == (OUTSIDE, "intercept")
        assert (event["outcome"], event["alert"], event["hung_up"]) == ("accepted", None, None)
        assert "7.4" in event["caveat"]
        (shown,) = it.flows.requests[-1:]
        assert shown.request.headers["cookie"] == "[redacted]"
        writer.close()
    assert origin.connections == 0


def issuer(inside: ssl.SSLObject) -> str:
    der = inside.getpeercert(True)
    assert der
    return x509.load_der_x509_certificate(der).issuer.rfc4514_string()


@requires.tool("curl")
async def test_http_2_inside_interception_is_answered_511(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        url = f"https://localhost:{it.port}/"
        status, said = await run("curl", "-ksi", "--http2", "--noproxy", "*", url)
        assert (status, said.partition("\r\n")[0]) == (0, "HTTP/2 511 "), said
    assert origin.connections == 0


@pytest.mark.parametrize("trusts_ca", [None, True])
async def test_a_client_that_rejects_the_certificate_is_recognized_by_its_alert(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    trusts_ca: bool | None,
) -> None:
    dialled("127.0.0.1", origin.port)
    rule = "clients:\n  - {address: 127.0.0.1, trusts_ca: true}\n" if trusts_ca else ""
    async with portal(INTERCEPT + rule, mode="transparent") as it:
        recorded = listened(it, monkeypatch)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(check_the_certificate, it.port)
        event = await recorded.one("tls")
        assert (event["outcome"], event["alert"]) == ("rejected", "unknown_ca")
        assert (event["hung_up"], event["trusts_ca"]) == (None, trusts_ca)
    assert origin.connections == 0


@pytest.mark.parametrize("when", ["before the certificate", "after it"])
async def test_a_client_that_hangs_up_has_rejected_the_certificate(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        recorded = listened(it, monkeypatch)
        reader, writer = await connected(it, "transparent", 0)
        if when == "after it":  # as GnuTLS clients do: they look once the handshake is through
            await over_tls((reader, writer))
        else:
            writer.write(real())
            await reader.read(1)
        writer.close()
        event = await recorded.one("tls")
        assert (event["outcome"], event["alert"], event["hung_up"]) == ("rejected", None, True)
    assert origin.connections == 0


async def test_nothing_plain_inside_an_intercepted_handshake_leaves(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)

    async def one(it: Portal, alpn: list[str], data: bytes) -> None:
        reader, writer = await connected(it, "transparent", 0)
        await over_tls((reader, writer), trusting_all(alpn))
        writer.write(data)
        assert b" 200 " not in await until_closed(reader, 1)
        writer.close()

    async with portal(INTERCEPT, mode="transparent") as it, asyncio.TaskGroup() as group:
        for alpn in ([], ["http/1.1"], ["odd"], ["h2"]):
            for data in (b"\n", b"x", b"\x00\x01\x02", b"SSH-2.0-x\r\n", b"GET /\r\n\r\n"):
                group.create_task(one(it, alpn, data))
    assert origin.connections == 0


@requires.tool("curl", "wget")
@pytest.mark.parametrize(
    ("client", "says"),
    [
        (("wget", "--no-proxy", "-t", "1", "-T", "60", "-O", "-"), "not trusted"),
        (("curl", "-sS", "--noproxy", "*", "--max-time", "60"), "certificate"),
        (("openssl", "s_client", "-verify_return_error", "-connect"), "verify error"),
    ],
    ids=lambda it: it[0],
)
async def test_real_clients_reject_the_certificate_each_in_its_way(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    client: tuple[str, ...],
    says: str,
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        recorded = listened(it, monkeypatch)
        there = f"localhost:{it.port}"
        status, said = await run(*client, there if client[0] == "openssl" else f"https://{there}/")
        assert status, said
        assert says in said
        event = await recorded.one("tls")
        assert event["outcome"] == "rejected"
        assert event["alert"] in ("unknown_ca", None)
        assert (event["alert"] is None) == (event["hung_up"] is True)
    assert origin.connections == 0


async def test_tls_inside_intercepted_tls_is_decided_like_any_other(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(INTERCEPT, mode="transparent") as it:
        reader, writer = await connected(it, "transparent", 0)
        await over_tls((reader, writer))
        writer.write(real(OUTSIDE))
        await until_closed(reader, 0.3)
        writer.close()
    assert origin.connections == 0


def protocols_for(size: int) -> list[str]:
    """Names of protocols with which OpenSSL's ClientHello has `size` bytes."""
    names = ["http/1.1"]
    while (left := size + 5 - len(real(alpn=names))) > 256:
        names.append("x" * 200)
    return [*names, "x" * (left - 1)]


@pytest.mark.parametrize("policy", [INTERCEPT, KNOWN + "tls: {known: inspect, connect: alert}\n"])
async def test_a_hello_that_mitmproxy_gets_has_a_bounded_size(
    portal: StartPortal,
    secure: TlsOrigin,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    async with portal(policy) as it:
        largest = await connected(it, "regular", secure.port)
        inside = await over_tls(largest, trusting_all(protocols_for(HELLO)))
        assert "mitmproxy" in issuer(inside)
        recorded = listened(it, monkeypatch)
        larger = await connected(it, "regular", secure.port)
        with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_ACCESS_DENIED"):
            await over_tls(larger, trusting_all(protocols_for(HELLO + 1)))
        await until(lambda: any(event["action"] == "refuse" for event in recorded.of("tls")))
        (event,) = (event for event in recorded.of("tls") if event["action"] == "refuse")
        assert event["outcome"] == "refused"
        because = f"it says that it has {HELLO + 1} bytes; {HELLO} are allowed"
        assert event["because"].endswith(because)
        for _, writer in (largest, larger):
            writer.close()


# --- TLS to the proxy itself ----------------------------------------------------------------------


@requires.tool("curl")
@pytest.mark.parametrize("policy", [ALERT, INTERCEPT, "tls: {connect: answer}\n"])
async def test_tls_to_the_proxy_itself_is_a_way_in_like_any_other(
    portal: StartPortal, origin: Origin, policy: str
) -> None:
    async with portal(policy) as it:
        proxy = ("-ksi", "--noproxy", "", "--proxy-insecure", "-x", f"https://127.0.0.1:{it.port}")
        status, said = await run("curl", *proxy, f"http://127.0.0.1:{origin.port}/")
        assert (status, said[:12]) == (0, "HTTP/1.1 511"), said
        status, said = await run("curl", *proxy, f"https://127.0.0.1:{origin.port}/")
        if policy == ALERT:
            assert status == 35, said
        elif policy == INTERCEPT:
            assert "511" in said, said
        else:
            assert (status, said[:12]) == (56, "HTTP/1.1 511"), said
    assert origin.connections == 0


@pytest.mark.parametrize("policy", ["", KNOWN])
async def test_a_hello_to_the_proxy_itself_is_bounded_too(
    portal: StartPortal, origin: Origin, policy: str
) -> None:
    async with portal(policy) as it:
        for name, data in BROKEN.items():
            assert await raw(await connected(it, "", 0), data) == ALERT_49, name
    assert origin.connections == 0


@pytest.mark.parametrize("policy", ["", KNOWN, INTERCEPT])
async def test_tls_to_the_proxy_itself_speaks_http_1_alone(
    portal: StartPortal, policy: str
) -> None:
    async with portal(policy) as it:
        for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None)):
            streams = await connected(it, "", 0)
            inside = await over_tls(streams, trusting_all(offered))
            assert inside.selected_alpn_protocol() == chosen
            streams[1].close()


# --- known clients --------------------------------------------------------------------------------


@each_mode
@pytest.mark.parametrize("known", ["tunnel", "inspect"])
async def test_a_known_client_has_the_origins_certificate_or_mitmproxys(
    portal: StartPortal, secure: TlsOrigin, dialled: Dialled, mode: str, known: str
) -> None:
    dialled("127.0.0.1", secure.port)
    policy = f"{KNOWN}tls: {{known: {known}}}\n"
    async with portal(policy, mode=mode, ssl_insecure=True) as it:
        for alpn in ([], ["h2", "http/1.1"]):
            reader, writer = await connected(it, mode, secure.port)
            inside = await over_tls((reader, writer), trusting_all(alpn), OUTSIDE)
            if known == "tunnel":
                assert inside.getpeercert(True) == secure.certificate
            else:
                assert "mitmproxy" in issuer(inside)
            if inside.selected_alpn_protocol() != "h2":
                writer.write(f"GET / HTTP/1.1\r\nHost: {OUTSIDE}\r\n\r\n".encode())
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.close()
    assert secure.connections >= 1
    assert secure.sni[0] == OUTSIDE


class UntilGone:
    """An addon of the operator that waits until the client has gone."""

    async def http_connected(self, shown: HTTPFlow) -> None:
        await until(lambda: shown.client_conn.state is ConnectionState.CLOSED)


async def test_a_known_client_that_goes_before_its_tunnel_is_open_causes_no_fault(
    portal: StartPortal, origin: Origin, written: Counter[str]
) -> None:
    place = f"127.0.0.1:{origin.port}"
    async with portal(f"{KNOWN}tls: {{known: inspect}}\n") as it:
        it.master.addons.chain.insert(0, UntilGone())
        _, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode() + real())
        await until(lambda: origin.connections == 1)
        writer.close()
        await until(lambda: len(it.keeper.connections) == 0)
    assert written["fault"] == 0


@each_mode
async def test_a_known_client_that_goes_while_its_origin_is_silent_is_forgotten(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(f"{KNOWN}tls: {{known: inspect}}\n", mode=mode) as it:
        _, writer = await connected(it, mode, origin.port)
        writer.write(real())
        await until(lambda: bool(origin.received))
        writer.close()
        await until(lambda: len(it.keeper.connections) == 0)
        await until(lambda: not origin.open)


async def test_what_only_begins_like_tls_goes_on_for_a_known_client(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    data = b"\x16\x03\x01 is how a protocol of its own begins\r\n\r\n"
    async with portal(KNOWN, mode="transparent") as it:
        reader, writer = await connected(it, "transparent", 0)
        writer.write(data)
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert origin.received == data


async def test_a_client_that_becomes_known_or_unknown_is_decided_again(
    portal: StartPortal, secure: TlsOrigin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", secure.port)
    async with portal(mode="transparent") as it:
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                await over_tls(await connected(it, "transparent", 0))
            it.grant("127.0.0.1")
            streams = await connected(it, "transparent", 0)
            inside = await over_tls(streams)
            assert inside.getpeercert(True) == secure.certificate
            it.revoke("127.0.0.1")
            assert await until_closed(streams[0]) == b""
    assert secure.connections == 2


@each_mode
async def test_a_known_client_reaches_the_login_server_by_its_address(
    portal: StartPortal,
    secure: TlsOrigin,
    dialled: Dialled,
    written: Counter[str],
    mode: str,
) -> None:
    """The client is connected to what it dialled before its SNI says which host it means."""
    dialled("127.0.0.1", secure.port)
    policy = f"{KNOWN}login_url: https://{GARDEN}:{secure.port}/\n"
    async with portal(policy, mode=mode) as it:
        with_names(it, GARDEN)
        reader, writer = await connected(it, mode, secure.port)
        inside = await over_tls((reader, writer), sni=GARDEN)
        assert inside.getpeercert(True) == secure.certificate
        writer.write(f"GET / HTTP/1.1\r\nHost: {GARDEN}\r\n\r\n".encode())
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
        await until(lambda: sum(len(h.transports) for h in handlers(it)) == 2)
        writer.close()
        await until(lambda: not it.keeper.connections)
        assert written["fault"] == 0


def handlers(it: Portal) -> list[Any]:
    return list(it.master.addons.get("proxyserver").connections.values())


# --- the walled garden ----------------------------------------------------------------------------


async def test_the_gardens_sni_leads_to_the_gardens_own_address_whatever_was_dialled(
    portal: StartPortal, secure: TlsOrigin, dialled: Dialled
) -> None:
    dialled(ELSEWHERE, secure.port)
    async with portal(garden(f"{GARDEN}:{secure.port}"), mode="transparent") as it:
        names = with_names(it, GARDEN)
        inside = await over_tls(await connected(it, "transparent", 0), sni=GARDEN.upper() + ".")
        assert inside.getpeercert(True) == secure.certificate
        assert names.asked == [GARDEN]
        (opened,) = [
            server
            for handler in it.master.addons.get("proxyserver").connections.values()
            for server in handler.transports
            if server is not handler.client
        ]
        assert opened.peername[0] == "127.0.0.1"


async def test_the_gardens_sni_on_another_port_is_refused(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(garden(GARDEN), mode="transparent") as it:
        with_names(it, GARDEN)
        with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
            await over_tls(await connected(it, "transparent", 0), sni=GARDEN)
    assert origin.connections == 0


@pytest.mark.parametrize("mode", ["regular", "socks5"])
@pytest.mark.parametrize("unknown", ["refuse", "intercept", "drop"])
async def test_in_a_tunnel_to_the_garden_only_the_gardens_own_sni_goes_on(
    portal: StartPortal, secure: TlsOrigin, mode: str, unknown: str
) -> None:
    place = f"{GARDEN}:{secure.port}"
    policy = f"{garden(place)}tls: {{unknown: {unknown}}}\n"
    async with portal(policy, mode=mode) as it:
        with_names(it, GARDEN, OUTSIDE)
        streams = await connected(it, mode, secure.port, GARDEN)
        inside = await over_tls(streams, sni=GARDEN)
        assert inside.getpeercert(True) == secure.certificate
        streams[1].close()
        assert secure.connections == 1
        for sni in (OUTSIDE, None):
            streams = await connected(it, mode, secure.port, GARDEN)
            if unknown == "intercept":
                assert "mitmproxy" in issuer(await over_tls(streams, sni=sni))
                streams[1].close()
            else:
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    await over_tls(streams, sni=sni)
        for odd in ("with odd bytes in its SNI", "with two names"):
            streams = await connected(it, mode, secure.port, GARDEN)
            assert await first_byte(streams, WHOLE[odd]) in (b"", b"\x15"), odd
        assert secure.connections == 1


@each_mode
async def test_without_an_sni_only_an_address_of_the_garden_goes_on(
    portal: StartPortal, secure: TlsOrigin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", secure.port)
    for place, goes_on in ((GARDEN, False), ("127.0.0.1", True)):
        async with portal(ALERT + garden(f"{place}:{secure.port}"), mode=mode) as it:
            with_names(it, GARDEN)
            streams = await connected(it, mode, secure.port, place)
            if goes_on:
                inside = await over_tls(streams, sni=None)
                assert inside.getpeercert(True) == secure.certificate
            else:
                with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                    await over_tls(streams, sni=None)
            streams[1].close()
    assert secure.connections == 1


async def test_in_a_tunnel_to_the_garden_raw_bytes_go_nowhere(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal(garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it, GARDEN, OUTSIDE)
        for data in (b"SSH-2.0-x\r\n", b"\x00\x01\x02\x03", b"\n\n\n", b"EHLO x\r\n"):
            streams = await connected(it, "regular", origin.port, GARDEN)
            answer = await raw(streams, data, timeout=0.5)
            assert b" 200 " not in answer
        assert origin.connections == 0
        streams = await connected(it, "regular", origin.port, GARDEN)
        host = f"GET / HTTP/1.1\r\nHost: {GARDEN}:{origin.port}\r\n\r\n".encode()
        assert b" 200 " in await raw(streams, host)
    assert re.findall(rb"(?i)\nHost: ([^\r]*)", origin.received) == [
        f"{GARDEN}:{origin.port}".encode()
    ]
