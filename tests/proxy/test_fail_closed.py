"""Whatever fails, nothing leaves that was not let through."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from capport.core.client import Address, Mac
from capport.core.place import Host
from capport.core.policy import ClientRules
from capport.front import templates
from capport.linux import Neighbours
from capport.proxy import addon as mitm
from capport.proxy.fail_closed import NotStarted
from capport.proxy.layers import http1
from conftest import Origin, Portal, StartPortal, one_answer, until_closed
from proxy.hellos import message, over_tls, records, server_name, trusting_all
from proxy.wire import GARDEN, OUTSIDE, Dialled, garden, until, with_names

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HELLO = records(message(server_name(OUTSIDE.encode())))

WAIT = 0.15  # seconds for what must not come, and otherwise would within a few ms


class BrokenError(Exception):
    """The exception that every collaborator raises here."""


def broken(*_: Any, **__: Any) -> Any:
    raise BrokenError("broken")


@pytest.fixture(autouse=True)
def nothing_crashed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """As for the other tests, but these cause faults of the portal, which are logged."""
    with caplog.at_level(logging.WARNING):
        yield
    said = [it.getMessage() for when in ("setup", "call") for it in caplog.get_records(when)]
    assert not [text for text in said if "has crashed" in text]


class BrokenRules(ClientRules):
    find = broken


# --- every collaborator, on every walk ------------------------------------------------------------


def the_rules(it: Portal, _: pytest.MonkeyPatch) -> None:
    it.gate.policy = replace(it.gate.policy, clients=BrokenRules())


def the_store(it: Portal, patch: pytest.MonkeyPatch) -> None:
    it.gate.policy = replace(it.gate.policy, clients=ClientRules())  # or it would not be asked
    patch.setattr(it.gate.store, "find", broken)


def the_neighbours(it: Portal, _: pytest.MonkeyPatch) -> None:
    class Broken(Neighbours):
        def find_mac(self, address: Address) -> Mac | None:
            raise BrokenError(address)

    it.gate.neighbours = Broken()


def the_clock(it: Portal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(it.gate, "now", broken)


def the_resolver(it: Portal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(it.keeper.dialling.resolver, "resolve", broken)


def the_reply(_: Portal, patch: pytest.MonkeyPatch) -> None:
    templates.kept.clear()
    patch.setattr(templates, "reply_to", broken)
    patch.setattr(http1, "reply_to", broken)
    patch.setattr(mitm, "reply_to", broken)


def the_events(it: Portal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(it.gate.events, "write", broken)


def the_state(it: Portal, _: pytest.MonkeyPatch) -> None:
    it.gate.state = broken


def the_handshakes(it: Portal, patch: pytest.MonkeyPatch) -> None:
    for name in ("intercepted", "established", "failed", "used", "closed"):
        patch.setattr(it.keeper.enforcer.handshakes, name, broken)


def the_connections(it: Portal, patch: pytest.MonkeyPatch) -> None:
    for name in ("opened", "closed", "answered", "let_through"):
        patch.setattr(it.keeper.connections, name, broken)


def the_verdict(it: Portal, patch: pytest.MonkeyPatch) -> None:
    for name in ("request", "connection", "handshake", "known"):
        patch.setattr(it.gate, name, broken)


COLLABORATORS = [
    *(the_rules, the_store, the_neighbours, the_clock, the_resolver, the_reply, the_events),
    *(the_state, the_handshakes, the_connections, the_verdict),
]
# A known client must not suffer from a fault in these.
HARMLESS = {the_reply, the_events, the_state}


A_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def to(mode: str, port: int) -> bytes:
    """What says where to, before all else."""
    socks = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2)
    return socks if mode == "socks5" else b""


async def walk(it: Portal, mode: str, port: int) -> list[bytes]:
    """The answers to one of each thing that a client may send."""
    there = f"127.0.0.1:{port}"
    target = f"http://{there}/" if mode == "regular" else "/"
    head = f"GET {target} HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n".encode()
    body = f"PUT {target} HTTP/1.1\r\nHost: {there}\r\nContent-Length: 5\r\n\r\nhello".encode()
    sent = [head, body, HELLO, b"\x00\x01\x02\x03", b"G", HTTP2]
    if mode == "regular":
        tunnel = f"CONNECT {there} HTTP/1.1\r\nUser-Agent: Mozilla/5.0\r\n\r\n".encode()
        sent += [tunnel + HELLO, tunnel + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    sent = [to(mode, port) + data for data in sent]

    async def one(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        try:
            writer.write(data)
            return await until_closed(reader, WAIT)
        finally:
            writer.close()

    async def inside() -> bytes:
        """An HTTP request inside TLS, if that is intercepted."""
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        try:
            await asyncio.wait_for(over_tls((reader, writer), trusting_all()), 2)
            writer.write(A_REQUEST)
            return await until_closed(reader, WAIT)
        except (OSError, TimeoutError):
            return b""
        finally:
            writer.close()

    return list(await asyncio.gather(*map(one, sent), inside()))


@pytest.mark.parametrize("collaborator", COLLABORATORS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("mode", ["regular", "transparent", "socks5"])
async def test_whatever_raises_nothing_of_an_unknown_client_leaves(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    collaborator: Callable[[Portal, pytest.MonkeyPatch], None],
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal("tls: {unknown: intercept}\n", mode=mode) as it:
        collaborator(it, monkeypatch)
        answers = await walk(it, mode, origin.port)
        assert all(b" 200 OK" not in answer for answer in answers)
        if collaborator is the_reply:
            assert b"HTTP/1.1 503 " in await it.talk(to(mode, origin.port) + A_REQUEST)
        monkeypatch.undo()
    assert origin.connections == 0


@pytest.mark.parametrize("collaborator", COLLABORATORS, ids=lambda it: it.__name__)
async def test_whatever_raises_no_client_is_known_by_it(
    portal: StartPortal,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
    collaborator: Callable[[Portal, pytest.MonkeyPatch], None],
) -> None:
    there = f"127.0.0.1:{origin.port}"
    request = f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n"
    async with portal(KNOWN) as it:
        collaborator(it, monkeypatch)
        answer = await it.talk(request.encode())
        monkeypatch.undo()
    if collaborator in HARMLESS:
        assert answer.startswith(b"HTTP/1.1 200 ")
    else:
        assert b" 200 OK" not in answer
        assert origin.connections == 0


@pytest.mark.parametrize("error", [BrokenError("x"), OSError("x"), ValueError("x"), KeyError("x")])
async def test_a_garden_name_that_cannot_be_resolved_is_not_reached(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    place = f"{GARDEN}:{origin.port}"

    async def resolve(host: Host) -> list[Address]:
        raise error

    async with portal(garden(place)) as it:
        monkeypatch.setattr(it.keeper.dialling.resolver, "resolve", resolve)
        request = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n"
        answer = await it.talk(request.encode())
        assert answer.startswith(b"HTTP/1.1 502 "), answer
    assert origin.connections == 0


async def test_events_on_a_full_disk_hold_nothing_up(
    portal: StartPortal, origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    async with portal(events=True) as it:
        for _ in range(3):
            answer = await it.ask(f"GET http://127.0.0.1:{origin.port}/ HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 400 ")  # no Host field
            answer = await it.ask(b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 511 ")
            await asyncio.sleep(0.1)
    logged = [it.getMessage() for it in caplog.records if "events are lost" in it.getMessage()]
    assert len(logged) == 1
    assert "No space left on device" in logged[0]
    assert origin.connections == 0


# --- the guard alone ------------------------------------------------------------------------------


def get(port: int) -> bytes:
    there = f"127.0.0.1:{port}"
    return f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n".encode()


def without_the_hooks(it: Portal, _: pytest.MonkeyPatch) -> None:
    it.master.addons.chain.remove(it.keeper)


def with_a_hook_that_raises(it: Portal, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(it.keeper, "server_connect", broken)


def without_any_addon(it: Portal, _: pytest.MonkeyPatch) -> None:
    it.master.addons.chain = [
        addon for addon in it.master.addons.chain if type(addon).__name__ == "NextLayer"
    ]


def with_an_addon_that_ends_the_chain(it: Portal, _: pytest.MonkeyPatch) -> None:
    it.master.addons.chain.insert(0, Hooked("server_connect", exceptions.AddonHalt()))


class Hooked:
    """Another addon, with one hook, which raises."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.name = f"hooked-{hook}"

        def raising(*_: Any) -> None:
            raise error

        setattr(self, hook, raising)


@pytest.mark.parametrize(
    "change",
    [
        *(without_the_hooks, with_a_hook_that_raises),
        *(without_any_addon, with_an_addon_that_ends_the_chain),
    ],
    ids=lambda it: it.__name__,
)
@pytest.mark.parametrize("mode", ["regular", "transparent", "socks5"])
async def test_the_guard_denies_what_the_hooks_did_not_approve(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    change: Callable[[Portal, pytest.MonkeyPatch], None],
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(KNOWN, mode=mode) as it:
        chain = list(it.master.addons.chain)
        change(it, monkeypatch)
        answers = await walk(it, mode, origin.port)
        assert all(b" 200 OK" not in answer for answer in answers)
        it.master.addons.chain = chain
        monkeypatch.undo()
    assert origin.connections == 0
    if change in (without_the_hooks, without_any_addon):
        # mitmproxy's own TLS raises if a client goes before its layer is chosen.
        caplog.clear()


async def test_a_portal_that_has_not_started_stops_what_was_open_before_it(
    portal: StartPortal, origin: Origin
) -> None:
    """As if the script were added to a running mitmproxy, with a policy that cannot be used."""
    there = f"127.0.0.1:{origin.port}"
    request = f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\n\r\n".encode()
    async with portal(KNOWN) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(request)
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
        chain = it.master.addons.chain
        it.master.addons.chain = [NotStarted() if one is it.keeper else one for one in chain]
        writer.write(request)
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert await it.talk(request) == b""
        it.master.addons.chain = chain
    assert len(origin.heads) == 1


@pytest.mark.parametrize("mode", ["regular", "transparent"])
async def test_an_addon_cannot_change_the_address_after_it_was_approved(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    async with Origin().serving() as other:

        class Elsewhere:
            def server_connect(self, data: ServerConnectionHookData) -> None:
                data.server.address = ("127.0.0.1", other.port)
                data.server.error = None

        dialled("127.0.0.1", origin.port)
        async with portal(KNOWN, mode=mode) as it:
            it.master.addons.add(Elsewhere())
            answers = await walk(it, mode, origin.port)
            assert all(b" 200 OK" not in answer for answer in answers)
        assert origin.connections == other.connections == 0


async def test_an_addon_cannot_lift_a_denial(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    class Lifting:
        def server_connect(self, data: ServerConnectionHookData) -> None:
            data.server.error = None

        def requestheaders(self, flow: Any) -> None:
            flow.response = None

    dialled("127.0.0.1", origin.port)
    for mode in ("regular", "transparent"):
        async with portal("tls: {unknown: intercept}\n", mode=mode) as it:
            it.master.addons.add(Lifting())
            await walk(it, mode, origin.port)
    assert origin.connections == 0


HOOKS = [
    *("client_connected", "next_layer", "tls_clienthello", "tls_start_client"),
    *("tls_established_client", "tcp_start", "tcp_message", "responseheaders", "response", "error"),
]
HTTP_HOOKS = ["requestheaders", "request", "http_connect", "server_connect", "next_layer"]


@pytest.mark.parametrize("error", [BrokenError("x"), exceptions.AddonHalt()], ids=repr)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("mode", "hooks"), [("transparent", HOOKS), ("regular", HTTP_HOOKS)], ids=["tls", "http"]
)
async def test_what_another_addon_raises_opens_nothing(
    portal: StartPortal,
    origin: Origin,
    dialled: Dialled,
    place: str,
    error: Exception,
    mode: str,
    hooks: list[str],
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal("tls: {unknown: intercept}\n", mode=mode) as it:
        chain = list(it.master.addons.chain)
        for hook in hooks:
            other = Hooked(hook, error)
            it.master.addons.chain = [other, *chain] if place == "before" else [*chain, other]
            answers = await walk(it, mode, origin.port)
            assert all(b" 200 OK" not in answer for answer in answers), hook
            assert origin.connections == 0, hook
        it.master.addons.chain = chain


# --- mitmproxy's side doors -----------------------------------------------------------------------


async def test_a_refused_flow_that_is_replayed_is_refused_again(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        assert b" 511 " in await it.ask(get(origin.port))
        (refused,) = it.flows.requests
        await replayed(it, refused)
        assert refused.response is not None
        assert refused.response.status_code == 511
        assert origin.connections == 0
        it.grant("127.0.0.1")
        await replayed(it, refused)
        assert refused.response.status_code == 200
    assert origin.connections == 1


async def replayed(it: Portal, flow: Any) -> None:
    it.master.commands.call("replay.client", [flow])
    await asyncio.sleep(0)
    await until(lambda: it.master.commands.call("replay.client.count") == 0 and bool(flow.response))


async def test_mitm_it_is_not_served(portal: StartPortal) -> None:
    for policy in ("", KNOWN):
        async with portal(policy) as it:
            with_names(it)
            answer = await it.ask(b"GET http://mitm.it/ HTTP/1.1\r\nHost: mitm.it\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 5"), answer
            assert b"mitmproxy-ca" not in answer


OWN_NAMES = [
    *("127.0.0.1", "localhost", "0.0.0.0", "[::]", "[::1]", "127.1", "2130706433", "0x7f000001"),
    *("0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "127.0.0.2", "0"),
]


async def test_no_client_reaches_the_proxy_through_the_proxy(
    portal: StartPortal, caplog: pytest.LogCaptureFixture
) -> None:
    async with portal(KNOWN) as it:
        seen = len(it.flows.requests)
        for name in OWN_NAMES:
            there = f"{name}:{it.port}"
            request = f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n"
            answer = await it.talk(request.encode())
            assert answer.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 400 ")), (name, answer)
            tunnel = f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n"
            answer = await it.talk(tunnel.encode() + request.encode())
            assert b" 511 " not in answer, (name, answer)
            assert b" 200 OK" not in answer, (name, answer)
        # Each of these came from this test: none from the proxy itself.
        assert len(it.flows.requests) - seen <= 2 * len(OWN_NAMES)


async def test_a_redirected_hit_on_the_proxys_own_port_does_not_loop(
    portal: StartPortal, dialled: Dialled
) -> None:
    async with portal(KNOWN, mode="transparent") as it:
        dialled("127.0.0.1", it.port)
        with contextlib.suppress(ConnectionError):
            assert await it.talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert not it.flows.requests
