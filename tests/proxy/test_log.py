"""The log quotes what strangers send briefly, and not each time, also in mitmproxy's lines."""

import asyncio
import logging
import ssl
from collections import Counter
from pathlib import Path

import pytest

from capport.log_limits import FAULTS, QUOTED, StrangersFilter
from conftest import Origin, Portal, StartPortal
from proxy.hellos import trusting_none
from proxy.mitmdump import policy, started
from proxy.wire import GARDEN, garden, say, with_names

BODY = b"Transfer-Encoding: chunked\r\n\r\n" + b"\xff" * 60_000 + b"\r\n"
MORE_THAN_THE_FRONT_READS = b"\xff" * 70_000


async def sent(port: int, data: bytes) -> bytes:
    return await say(await asyncio.open_connection("127.0.0.1", port), data)


async def a_broken_body(it: Portal, place: str) -> None:
    await sent(it.port, f"POST http://{place}/ HTTP/1.1\r\nHost: {place}\r\n".encode() + BODY)


async def a_broken_handshake(it: Portal, place: str) -> None:
    """TLS to the proxy itself, with a client that does not accept its certificate."""
    _, writer = await asyncio.open_connection("127.0.0.1", it.port)
    with pytest.raises(ssl.SSLError):
        await writer.start_tls(trusting_none(), server_hostname="proxy.example.org")
    writer.close()


async def an_unfinished_head(it: Portal, place: str) -> None:
    await sent(it.port, b"GET http://x/ HTTP/1.1\r\nX: " + MORE_THAN_THE_FRONT_READS)


async def an_odd_request(it: Portal, place: str) -> None:
    await sent(it.port, b"GET " + b"\xff" * 10_000 + b" HTTP/1.1\r\n\r\n")


SENDERS = {
    "a broken body": (a_broken_body, ""),
    "a broken handshake": (a_broken_handshake, ""),
    "an unfinished head": (an_unfinished_head, ""),
    "a known client's unfinished head": (an_unfinished_head, "known"),
    "a known client's odd request": (an_odd_request, "known"),
    "a known client's broken body": (a_broken_body, "known"),
}


@pytest.mark.parametrize("name", SENDERS)
async def test_what_is_sent_again_and_again_is_one_short_line(
    portal: StartPortal, origin: Origin, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    send, who = SENDERS[name]
    place = f"{GARDEN}:{origin.port}"
    known = "clients:\n  - {address: 127.0.0.1, access: known}\n"
    async with portal("probes: strict\n" + (known if who else garden(place))) as it:
        with_names(it, GARDEN)
        with caplog.at_level(logging.INFO):
            for _ in range(5):
                await send(it, place)
    said = [it for it in caplog.records if it.name.startswith(("mitmproxy", "capport.enf"))]
    assert said
    lines = Counter((it.name, it.lineno, it.getMessage().split(" 127.")[0]) for it in said)
    assert [it for it in lines.items() if it[1] > 1] == []
    assert max(len(it.getMessage()) for it in said) < QUOTED + 40


def test_each_client_and_kind_has_a_line_a_minute_of_its_own() -> None:
    now = 0.0
    through = StrangersFilter(lambda: now)

    def says(text: str, client: str | None, level: int = logging.INFO) -> bool:
        record = logging.LogRecord("mitmproxy.proxy.server", level, "", 1, text, None, None)
        record.client = client and (client, 4711)
        return through.filter(record)

    assert says("client connect", "192.0.2.1")
    assert not says("client connect", "192.0.2.1")
    assert says("client connect", "192.0.2.2")
    assert says("client disconnect", "192.0.2.1")
    assert says("Bad HTTP request line: b'a'", "192.0.2.1")
    assert not says("Bad HTTP request line: b'b'", "192.0.2.1")
    assert says("proxy listening at 1", None)  # which no client has caused
    assert says("proxy listening at 2", None)
    assert says("Transparent mode failure: 1", None, logging.ERROR)
    assert not says("Transparent mode failure: 2", None, logging.ERROR)
    now = FAULTS
    assert says("client connect", "192.0.2.1")


async def test_a_real_mitmdump_says_so_once_too(tmp_path: Path) -> None:
    async with started(tmp_path, "--set", f"portal_policy={policy(tmp_path)}") as it:
        for _ in range(20):
            await sent(it.port, b"GET / HTTP/1.1\r\nX: " + MORE_THAN_THE_FRONT_READS)
        await it.says("client disconnect")
        assert it.log.count("client connect") == 1
        assert max(map(len, it.log.splitlines())) < 2 * QUOTED
