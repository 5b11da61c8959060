"""What is shown, saved and logged of each flow: always its verdict, never a credential."""

import asyncio
import json
import ssl
from pathlib import Path

import pytest
from mitmproxy import flow, http, io, tcp

from conftest import Origin, StartPortal
from json_schemas import wrong_events
from proxy.hellos import over_tls, trusting_all
from proxy.mitmdump import policy, started
from proxy.wire import GARDEN, Dialled, garden, with_names

SECRETS = (b"s3cret-cookie", b"s3cret-token", b"s3cret-proxy")
CREDENTIALS = (
    b"Cookie: id=s3cret-cookie\r\ncOOkie: also=s3cret-cookie\r\n"
    b"Authorization: Bearer s3cret-token\r\nProxy-Authorization: Basic s3cret-proxy\r\n"
)


def get(place: str, more: bytes = CREDENTIALS) -> bytes:
    head = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n"
    return head.encode() + more + b"\r\n"


def saved(path: Path) -> list[flow.Flow]:
    with path.open("rb") as file:
        return list(io.FlowReader(file).stream())


async def test_each_flow_bears_its_verdict_and_keeps_it_when_saved(
    portal: StartPortal, origin: Origin, dialled: Dialled, tmp_path: Path
) -> None:
    path = tmp_path / "flows"
    place = f"{GARDEN}:{origin.port}"
    elsewhere = f"127.0.0.1:{origin.port}"
    async with portal(garden(place) + "tls: {connect: alert}\n") as it:
        with_names(it, GARDEN)
        it.master.options.update(save_stream_file=str(path))
        assert b" 511 " in await it.talk(get(elsewhere))
        assert b" 200 " in await it.talk(get(place))
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(f"CONNECT {elsewhere} HTTP/1.1\r\nHost: {elsewhere}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await over_tls((reader, writer))
        it.grant("127.0.0.1")
        assert b" 200 " in await it.talk(get(elsewhere))
        # A refused client's flow stays as it was, even if the client is known since.
        assert [shown.marked for shown in it.flows.requests][:1] == [":no_entry:"]
    flows = [it for it in saved(path) if not is_connect(it)]
    seen = [(it.marked, it.metadata["portal"]["verdict"]) for it in flows]
    assert sorted(seen) == [
        (":no_entry:", "NetworkAuthenticationRequired"),
        (":no_entry:", "Refuse"),
        (":seedling:", "Pass"),
        (":white_check_mark:", "Pass"),
    ]
    for one in flows:
        assert one.metadata["portal"]["because"] in one.comment
    refused = next(
        it for it in flows if it.marked == ":no_entry:" and isinstance(it, http.HTTPFlow)
    )
    assert "no session" in refused.comment
    assert refused.metadata["portal"]["credentials"] == {
        "cookie": 2,
        "authorization": 1,
        "proxy-authorization": 1,
    }
    (stream,) = [it for it in flows if isinstance(it, tcp.TCPFlow)]
    assert stream.error is not None
    assert "outside.example.com" in stream.comment


def is_connect(shown: flow.Flow) -> bool:
    return isinstance(shown, http.HTTPFlow) and shown.request.method == "CONNECT"


async def test_credentials_are_redacted_before_any_addon_sees_them(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    place = f"{GARDEN}:{origin.port}"
    for mode in ("regular", "transparent"):
        async with portal(garden(place) + "tls: {unknown: intercept}\n", mode=mode) as it:
            with_names(it, GARDEN)
            await it.talk(get(f"127.0.0.1:{origin.port}"))
            await it.talk(get(place))
            if mode == "transparent":
                for alpn in ([], ["h2"]):
                    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
                    await over_tls((reader, writer), trusting_all(alpn))
                    writer.write(b"GET / HTTP/1.1\r\nHost: x.test\r\n" + CREDENTIALS + b"\r\n")
                    await asyncio.sleep(0.1)
                    writer.close()
            assert it.flows.shown
            for shown in it.flows.shown:
                assert not any(secret in shown for secret in SECRETS), shown
            assert any(b"[redacted]" in shown for shown in it.flows.shown)
    # The garden got the client's own fields, except those that were meant for a proxy.
    assert origin.received.count(b"s3cret-token") == 2
    assert b"s3cret-proxy" not in origin.received


async def test_a_known_clients_credentials_arrive_as_they_are(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal("clients:\n  - {address: 127.0.0.1, access: known}\n") as it:
        assert b" 200 " in await it.talk(get(f"127.0.0.1:{origin.port}"))
    assert b"Cookie: id=s3cret-cookie" in origin.received
    assert b"Authorization: Bearer s3cret-token" in origin.received


async def test_no_credential_is_in_the_log_the_file_or_the_events(
    tmp_path: Path, origin: Origin
) -> None:
    flows, events = tmp_path / "flows", tmp_path / "events"
    arguments = (
        *("--flow-detail", "4", "-v", "-w", str(flows), "--set", f"portal_events={events}"),
        *("--set", f"portal_policy={policy(tmp_path)}"),
    )
    async with started(tmp_path, *arguments) as it:
        there = f"127.0.0.1:{origin.port}"
        assert b" 511 " in await it.ask(get(there))
        tunnel = f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n".encode() + CREDENTIALS + b"\r\n"
        assert b" 511 " in await it.ask(tunnel)
        assert b" 511 " in await it.ask(tunnel.replace(b"\r\n", b"\r\nUser-Agent: x\r\n", 1))
        odd = get(there).replace(b"Host: 127", b"Host: a\x0bb127", 1)
        assert b" 400 " in await it.ask(odd)
        await it.says("[redacted]")
        it.process.terminate()
        assert await it.ended() == 0
        everything = it.log.encode() + flows.read_bytes() + events.read_bytes()
    for secret in SECRETS:
        assert secret not in everything
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    assert wrong_events(seen) == []
    refused = next(it for it in seen if it["event"] == "refused")
    assert (refused["cookies"], refused["authorizations"]) == (2, 2)
    assert origin.connections == 0
