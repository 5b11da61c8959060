"""The front in a real proxy: what it accepts, answers, shows, and hands over to mitmproxy."""

import asyncio
import contextlib
import json
import os
import re
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.addons import intercept
from mitmproxy.exceptions import CommandError

from capport.core.client import Address, ClientId, Mac
from capport.core.cost import ANSWERS
from capport.core.deadlines import Deadlines
from capport.core.policy import Rate
from capport.events import MOST_WATCHED
from capport.front import display_limit
from capport.gate import Gate
from capport.linux import Neighbours, frames
from capport.proxy import connections, front_protocol
from capport.proxy.backpressure import LITTLE
from capport.proxy.flows import shown
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.front_protocol import Front, Stranger
from capport.proxy.internals import listeners, sockets
from capport.proxy.internals.listeners import Listener
from capport.proxy.open_connection import Open
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from ports import free_port
from proxy.hellos import ALERT_49, real
from proxy.mitmdump import SCRIPT, policy, started
from proxy.wire import GARDEN, Dialled, Streams, garden, later, say, until, with_names

GET = b"GET http://outside.example.com/ HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"
ODD = b"GET http://outside.example.com/ HTTP/1.1\r\nHost : outside.example.com\r\n\r\n"
MAC = Mac("02:00:00:00:00:07")
KNOWN = "clients:\n  - {address: 127.0.0.9, access: known}\n"


async def connect(it: Portal, address: str = "127.0.0.1") -> Streams:
    return await asyncio.open_connection("127.0.0.1", it.port, local_addr=(address, 0))


def connect_many(it: Portal, count: int) -> list[socket.socket]:
    """Opens connections while the portal's event loop, which is this one, does nothing."""
    clients = [socket.socket() for _ in range(count)]
    for client in clients:
        client.connect(("127.0.0.1", it.port))
    return clients


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the clients that the front refused something, in order."""
    addresses: list[str] = []
    report = shown.Shown.refused

    def listening(self: shown.Shown, act: Any, shown_as: Any) -> None:
        addresses.append(str(act.client.address))
        report(self, act, shown_as)

    monkeypatch.setattr(shown.Shown, "refused", listening)
    return addresses


# --- in its place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["regular", "transparent"])
async def test_what_the_front_answers_mitmproxy_never_gets(
    portal: StartPortal, origin: Origin, dialled: Dialled, mode: str
) -> None:
    dialled("127.0.0.1", origin.port)
    target = GET if mode == "regular" else b"GET / HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"
    async with portal(mode=mode) as it:
        client = await connect(it)
        for _ in range(3):
            client[1].write(target)
            assert b" 511 " in await one_answer(client[0])
        client[1].close()
        if mode == "transparent":
            assert await say(await connect(it), real()) == ALERT_49
        assert it.flows.handed_over == 0
        await until(lambda: len(it.keeper.connections) == 0)
    assert origin.connections == 0


async def test_listeners_are_taken_over_when_the_modes_change(portal: StartPortal) -> None:
    async with portal() as it:
        servers = it.master.addons.get("proxyserver").servers
        for modes in (["regular", "socks5"], ["socks5"], ["regular"]):
            at = {free_port(): mode for mode in modes}
            it.master.options.update(mode=[f"{mode}@{port}" for port, mode in at.items()])
            await until(lambda: not servers.is_updating)
            assert len(servers) == len(modes)
            assert all(isinstance(own, Listener) for one in servers for own in one._servers)
            for address in it.master.addons.get("proxyserver").listen_addrs():
                reader, writer = await asyncio.open_connection(*address[:2])
                writer.write(GET)
                if at[address[1]] == "socks5":
                    assert b" 511 " not in await until_closed(reader)
                else:
                    assert b" 511 " in await one_answer(reader)
                writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", it.port)


NOT_OURS = """
import sys
sys.path.insert(0, {addon!r})
from capport.proxy.flows.flow_marks import FlowMarks
from capport.proxy.internals import listeners, sockets
class Listener:
    def __init__(self, *_): raise OSError(22, "Invalid argument")
listeners.Listener = Listener
from captive_portal import addons
"""


async def test_a_listener_that_cannot_be_taken_over_stops_the_start(tmp_path: Path) -> None:
    script = tmp_path / "not_ours.py"
    script.write_text(NOT_OURS.format(addon=str(SCRIPT.parent)))
    arguments = ("--set", f"portal_policy={policy(tmp_path)}")
    async with started(tmp_path, *arguments, script=script, listening=False) as it:
        assert await it.ended() == 1
        assert "".join(it.err) == "[Errno 22] Invalid argument\n"


async def test_a_server_without_sockets_cannot_be_taken_over(
    portal: StartPortal, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        closed = False

        def close(self) -> None:
            self.closed = True

    async with portal() as it:
        servers = it.master.addons.get("proxyserver").servers
        (instance,) = servers
        odd = Odd()
        instance._servers.append(odd)
        await servers.changed.send()
        assert odd.closed
        assert odd not in instance._servers
        assert "mode regular: the portal cannot accept its connections" in caplog.text
        assert b" 511 " in await it.ask(GET)


# --- its sockets ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def slow_client(it: Portal) -> AsyncIterator[tuple[socket.socket, Stranger]]:
    """A client that reads only when a test does, with small buffers in its system."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", it.port))
        (entry,) = await opened(it)
        assert isinstance(entry.line, Stranger)
        entry.line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield client, entry.line


async def read_slowly(client: socket.socket, ends: int | None = None) -> bytes:
    """What comes until the end of the stream, or of so many pages."""
    received, loop = b"", asyncio.get_running_loop()
    while ends is None or received.count(b"</html>") < ends:
        data = await asyncio.wait_for(loop.sock_recv(client, 1000), SOON)
        if not data:
            break
        received += data
    return received


@pytest.mark.parametrize("last", [b"Connection: close", b"Content-Length: 9"])
async def test_a_client_that_reads_slowly_gets_all_answers_to_the_last(
    portal: StartPortal, last: bytes, refused: list[str]
) -> None:
    async with portal() as it, slow_client(it) as (client, line):
        closing = GET.replace(b"\r\n\r\n", b"\r\n" + last + b"\r\n\r\n")
        await asyncio.get_running_loop().sock_sendall(client, GET * 30 + closing)
        await until(lambda: len(line.unsent) > 0)
        answered = len(refused)
        assert answered < 31  # the others wait until it reads
        assert len(await opened(it)) == 1
        assert (await read_slowly(client)).count(b"</html>") == len(refused) == 31
        client.close()
        await until(lambda: len(it.keeper.connections) == 0)


async def test_a_client_that_never_reads_meets_the_deadline(portal: StartPortal) -> None:
    async with portal() as it, slow_client(it) as (client, line):
        await asyncio.get_running_loop().sock_sendall(client, GET * 30)
        await until(lambda: len(line.unsent) > 0)
        later(connections.PATIENCE + 1)
        await until(lambda: len(it.keeper.connections) == 0)
        assert line.sock.fileno() == -1


async def test_an_answer_that_is_the_last_costs_no_place_in_the_book(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with portal(portal_shown=0) as it:
        monkeypatch.setattr(connections.Connections, "accepted", explode)
        with connect_many(it, 1)[0] as client:
            client.sendall(closing)  # before it is accepted
            client.setblocking(False)
            assert b" 511 " in await read_slowly(client)
        assert not it.keeper.front.by_fd


async def test_when_the_portal_stops_the_connections_in_the_front_end(portal: StartPortal) -> None:
    async with portal() as it:
        clients = [await connect(it) for _ in range(3)]
        clients[0][1].write(GET)
        assert b" 511 " in await one_answer(clients[0][0])
        clients[1][1].write(GET[:20])
        await until(lambda: len(it.keeper.connections) == 3)
        hold_up(it.keeper.front)
        clients.append(await connect(it, "127.0.0.2"))
        await until(lambda: it.keeper.front.turns.of(ClientId("127.0.0.2")) == 1)
    for reader, writer in clients:
        assert await until_closed(reader) == b""
        writer.close()
    assert len(it.keeper.connections) == 0
    late = socket.socket()
    it.keeper.front.accepted(None, [(late, ("127.0.0.1", 1))])  # type: ignore[arg-type]
    assert late.fileno() == -1


async def test_a_socket_that_somebody_else_has_closed_is_forgotten(
    portal: StartPortal, tmp_path: Path
) -> None:
    async with portal(events=True) as it:
        reader, writer = await connect(it)
        (entry,) = await opened(it)
        assert isinstance(entry.line, Stranger)
        os.close(entry.line.sock.fileno())
        assert await until_closed(reader) == b""
        later(connections.PATIENCE + 1)
        await until(lambda: len(it.keeper.connections) == 0)
        assert not it.keeper.front.by_fd
        assert b" 511 " in await it.ask(GET)
        writer.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "fault" for event in events)


async def test_what_comes_on_a_closed_socket_of_which_there_is_a_copy_wakes_nobody_for_long(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was forked meanwhile keeps the connection open, so it stays in the epoll."""
    epoll = select.epoll

    class Counted:
        polls = 0

        def __init__(self) -> None:
            self.counted = epoll()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.counted, name)

        def poll(self, *them: Any) -> Any:
            Counted.polls += 1
            return self.counted.poll(*them)

    monkeypatch.setattr(select, "epoll", Counted)
    async with portal() as it:
        _, writer = await connect(it)
        (entry,) = await opened(it)
        assert isinstance(entry.line, Stranger)
        copy = os.dup(entry.line.sock.fileno())
        it.keeper.connections.abort(entry)
        before = Counted.polls
        writer.write(GET)
        for _ in range(100):  # passes of the event loop
            await asyncio.sleep(0)
        for _ in range(10):
            assert b" 511 " in await it.ask(GET)
        assert 0 < Counted.polls - before < 100
        os.close(copy)
        writer.close()


async def test_deadlines_that_come_together_leave_time_to_others(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "AT_ONCE", 2)
    async with portal() as it:
        clients = [await connect(it) for _ in range(9)]
        await until(lambda: len(it.keeper.connections) == 9)
        counts = [9]

        def count() -> None:
            """Counts in each pass of the event loop."""
            counts.append(len(it.keeper.connections))
            if counts[-1]:
                asyncio.get_running_loop().call_soon(count)

        count()
        later(connections.PATIENCE + 1)
        await until(lambda: len(it.keeper.connections) == 0)
        assert sorted(set(counts)) == [0, 1, 3, 5, 7, 9]
        for reader, writer in clients:
            assert await until_closed(reader) == b""
            writer.close()


@pytest.mark.parametrize("new", [False, True], ids=["kept", "new"])
async def test_the_answers_of_a_pass_are_sent_together(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, refused: list[str], new: bool
) -> None:
    send = Stranger.send

    def sends(self: Stranger) -> None:
        refused.append("sent")
        send(self)

    monkeypatch.setattr(Stranger, "send", sends)
    async with portal(portal_shown=0) as it:
        clients = connect_many(it, 3)
        if not new:
            await until(lambda: len(it.keeper.connections) == 3)
        for client in clients:
            client.sendall(GET)
        await until(lambda: len(refused) == 6)
        assert refused == 3 * ["127.0.0.1"] + 3 * ["sent"]
        for client in clients:
            assert b" 511 " in client.recv(LITTLE)
            client.close()


async def test_the_last_answer_arrives_although_more_came_before_the_end(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Stranger.send

    def sends(self: Stranger) -> None:
        client.sendall(b"\r\n")  # so TCP resets the connection when it is closed
        send(self)

    monkeypatch.setattr(Stranger, "send", sends)
    async with portal(portal_shown=0) as it:
        (client,) = connect_many(it, 1)
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await asyncio.to_thread(client.recv, LITTLE)).endswith(b"</html>\n")
        client.close()


# --- handing over ---------------------------------------------------------------------------------


async def test_what_is_handed_over_follows_what_was_answered(portal: StartPortal) -> None:
    async with portal() as it:
        answer = await say(await connect(it), GET + GET + ODD + GET)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"511", b"511", b"400"]
        assert it.flows.handed_over == 1
        await until(lambda: len(it.keeper.connections) == 0)


async def test_the_number_of_answers_is_handed_over(portal: StartPortal) -> None:
    """The counts include what the front answers and what mitmproxy's layers answer."""
    get = GET.replace(b"\r\n\r\n", b"\r\nAccept : x\r\n\r\n")  # which h11 refuses
    folded = GET.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n")  # which only h11 reads
    assert get != folded
    async with portal() as it:
        answer = await say(await connect(it), GET * 60 + folded * 60)
        assert answer.count(b"HTTP/1.1 511 ") == ANSWERS
        assert it.flows.handed_over == 1


async def test_a_hand_over_waits_until_everything_is_sent(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 10 * SOON)
    folded = GET.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n")
    async with portal() as it, slow_client(it) as (client, line):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, GET * 30)
        await until(lambda: len(line.unsent) > 0)
        await loop.sock_sendall(client, folded)
        received = await read_slowly(client, 31)
        assert received.count(b"HTTP/1.1 511 ") == 31
        assert it.flows.handed_over == 1


def hold_up(front: Front) -> None:
    """Makes all wait for their turns, as during a hand-over, until `front.rest` is called."""
    front.leave(asyncio.sleep(0))


async def opened(it: Portal) -> list[Open]:
    """The connections that are open, once there are any."""
    entries = it.keeper.connections.entries
    await until(lambda: bool(entries))
    return list(entries.values())


async def test_the_end_of_the_clients_stream_is_handed_over(
    portal: StartPortal, origin: Origin
) -> None:
    place = f"{GARDEN}:{origin.port}"
    async with portal(garden(place)) as it:
        with_names(it, GARDEN)
        get = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()
        reader, writer = await connect(it)
        writer.write(GET + get)
        writer.write_eof()
        answer = await until_closed(reader)
        assert (answer.count(b" 511 "), answer.count(b" 200 ")) == (1, 1)
        writer.close()


async def test_a_connection_has_one_deadline_in_the_front_and_after(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[object] = []

    def watching(change: Callable[..., None]) -> Callable[..., None]:
        def changes(them: Any, key: object, *rest: Any) -> None:
            changed.append(key)
            change(them, key, *rest)

        return changes

    for name in ("set", "drop"):
        monkeypatch.setattr(Deadlines, name, watching(getattr(Deadlines, name)))
    async with portal() as it:
        reader, writer = await connect(it)
        (entry,) = await opened(it)
        assert changed.count(entry) == 1
        later(connections.PATIENCE - 1)
        writer.write(
            b"get / HTTP/1.1\r\nHost: x\r\n"
        )  # which may become a request, but an unusual one
        await until(lambda: it.flows.handed_over == 1)
        assert changed.count(entry) == 1
        later(2)
        assert await until_closed(reader) == b""
        writer.close()


async def test_all_connections_of_a_client_count_together(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_A_CLIENT", 20)
    async with portal() as it:
        clients = [await connect(it) for _ in range(30)]
        await until(lambda: len(it.keeper.connections) == 20)
        for _, writer in clients[10:20]:
            writer.write(b"get / HTTP/1.1\r\n")
        await until(lambda: it.flows.handed_over == 10)
        clients += [await connect(it) for _ in range(5)]
        await until(lambda: clients[14][0].at_eof())
        await until(lambda: len(it.keeper.connections) == 20)
        assert not any(reader.at_eof() for reader, _ in clients[15:])
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize("sent", [b"", GET[:20], GET])
async def test_a_connection_in_the_front_ends_when_its_client_becomes_known(
    portal: StartPortal, origin: Origin, sent: bytes
) -> None:
    async with portal() as it:
        reader, writer = await connect(it)
        await opened(it)
        writer.write(sent)
        if sent == GET:
            assert b" 511 " in await one_answer(reader)
        await asyncio.to_thread(it.grant, "127.0.0.1")
        assert await until_closed(reader) == b""
        assert it.flows.handed_over == 0
        writer.close()


async def test_a_request_after_the_client_became_known_is_handed_over(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.Connections, "recheck", lambda *_: None)  # that comes late
    get = f"GET http://127.0.0.1:{origin.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with portal() as it:
        reader, writer = await connect(it)
        writer.write(GET)
        assert b" 511 " in await one_answer(reader)
        await asyncio.to_thread(it.grant, "127.0.0.1")
        writer.write(get)
        assert b" 200 " in await one_answer(reader)
        writer.close()


# --- failing closed -------------------------------------------------------------------------------


def explode(*_: object, **__: object) -> Any:
    raise RuntimeError("for the test")


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Gate, "refusal"),
        (front_protocol, "Conversation"),
        (frames, "sender_from"),
        (connections.Connections, "accepted"),
        (connections.Connections, "goes_on"),
        (Stranger, "go_on"),
        (Stranger, "begin"),
        (listeners, "hand_over"),
        (FlowMarks, "refused"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
async def test_whatever_raises_in_the_front_nothing_leaves(
    portal: StartPortal,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    thing: Any,
    name: str,
) -> None:
    place = f"127.0.0.1:{origin.port}"
    get = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()
    async with portal(events=True) as it:
        monkeypatch.setattr(thing, name, explode)
        answer = await say(await connect(it), get)
        if name == "hand_over":
            answer = await say(await connect(it), ODD)
        assert (b" 511 " in answer) == (name in {"refusal", "goes_on", "refused"})
        monkeypatch.undo()
        assert b" 511 " in await it.ask(GET)
        await until(lambda: len(it.keeper.connections) == 0)
    assert origin.connections == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "fault" for event in events)


async def test_a_hand_over_that_fails_halfway_holds_nobody_up(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over = listeners.hand_over

    async def halfway(*them: Any, attached: object, **more: Any) -> None:
        await hand_over(*them, attached=explode, **more)

    async with portal() as it:
        monkeypatch.setattr(listeners, "hand_over", halfway)
        assert await say(await connect(it), ODD) == b""
        monkeypatch.undo()
        for _ in range(2 * front_protocol.AT_ONCE):
            assert b" 511 " in await it.ask(GET)
        await until(lambda: len(it.keeper.connections) == 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
async def test_a_client_that_resets_while_it_is_handed_over_is_forgotten(
    portal: StartPortal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    address: str,
) -> None:
    hand_over, done = listeners.hand_over, asyncio.Event()

    async def after_a_reset(instance: Any, sock: socket.socket, *rest: Any, **more: Any) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, sockets.RESET)
        client.close()
        with pytest.raises(OSError, match="not connected"):
            await until(lambda: not sock.getpeername())
        await hand_over(instance, sock, *rest, **more)
        done.set()

    async with portal(KNOWN) as it:
        monkeypatch.setattr(listeners, "hand_over", after_a_reset)
        client = socket.socket()
        client.bind((address, 0))
        client.connect(("127.0.0.1", it.port))
        client.send(ODD)
        await asyncio.wait_for(done.wait(), SOON)
        await until(lambda: len(it.keeper.connections) == 0)
        assert it.flows.handed_over == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- in turn --------------------------------------------------------------------------------------


async def test_connections_that_have_gone_again_cost_no_more_than_an_accept(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def count(thing: Any, name: str) -> None:
        build = getattr(thing, name)

        def counted(*them: Any, **more: Any) -> Any:
            built.append(name)
            return build(*them, **more)

        monkeypatch.setattr(thing, name, counted)

    count(front_protocol, "Conversation")
    count(connections.Connections, "accepted")
    count(listeners, "hand_over")
    get = f"GET http://127.0.0.1:{origin.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with portal(KNOWN) as it:
        for client in connect_many(it, 500):
            client.close()
        reader, writer = await connect(it, "127.0.0.9")
        writer.write(get)
        assert b" 200 " in await one_answer(reader)
        assert built == ["Conversation", "accepted", "hand_over"]  # for the known client
        writer.close()


async def test_a_client_that_asks_once_does_not_wait_for_one_that_asks_a_thousand_times(
    portal: StartPortal, refused: list[str]
) -> None:
    async with portal() as it:
        clients = connect_many(it, 400)
        for client in clients:
            client.sendall(GET)
        reader, writer = await connect(it, "127.0.0.2")
        writer.write(GET)
        assert b" 511 " in await one_answer(reader)
        assert refused.index("127.0.0.2") < 3 * front_protocol.AT_ONCE + listeners.AT_ONCE
        await until(lambda: len(refused) == 401)
        for client in clients:
            client.close()
        writer.close()


async def test_no_more_of_one_unknown_client_wait_than_it_may_have_open(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_A_CLIENT", 20)
    async with portal(KNOWN) as it:
        hold_up(it.keeper.front)
        (other,) = connect_from(it, ["127.0.0.2"])  # waits longest, and is not ended
        clients = connect_many(it, 50)
        await until(lambda: it.keeper.front.turns.of(ClientId("127.0.0.1")) == 20)
        assert it.keeper.front.turns.of(ClientId("127.0.0.2")) == 1
        assert [client.recv(1) for client in clients[:30]] == [b""] * 30
        it.keeper.front.rest()
        for client in (other, *clients[30:]):
            client.sendall(GET)
        for client in (other, *clients[30:]):
            received = await asyncio.to_thread(client.recv, 12)
            assert received == b"HTTP/1.1 511"
        for client in (other, *clients):
            client.close()


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Portal], None]:
    """Makes the neighbour table say that all addresses are one device's."""

    class OneDevice(Neighbours):
        def find_mac(self, address: Address) -> Mac | None:
            return MAC

    def tell(it: Portal) -> None:
        monkeypatch.setattr(it.gate, "neighbours", OneDevice())

    return tell


def connect_from(it: Portal, addresses: Iterable[str]) -> list[socket.socket]:
    """As `connect_many`, from these addresses."""
    clients = []
    for address in addresses:
        clients.append(socket.socket())
        clients[-1].bind((address, 0))
        clients[-1].connect(("127.0.0.1", it.port))
    return clients


async def test_a_device_with_many_addresses_has_the_turns_of_one(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch, one_device: Callable[[Portal], None]
) -> None:
    monkeypatch.setattr(connections, "MOST_A_CLIENT", 20)
    async with portal() as it:
        one_device(it)
        hold_up(it.keeper.front)
        clients = connect_from(it, (f"127.0.1.{number}" for number in range(1, 31)))
        await until(lambda: it.keeper.front.turns.of(ClientId(MAC)) == 20)
        assert len(it.keeper.front.turns) == 20
        assert await asyncio.to_thread(lambda: [one.recv(1) for one in clients[:10]]) == [b""] * 10
        it.keeper.front.rest()
        for client in clients:
            client.close()


async def test_what_waits_for_its_turn_leaves_descriptors_to_known_clients(
    portal: StartPortal,
) -> None:
    async with portal(KNOWN) as it:
        front = it.keeper.front
        hold_up(front)
        first = connect_from(it, ["127.0.0.2"])
        await until(lambda: len(front.turns) == 1)
        it.keeper.connections.most_accepted = 0  # as if so many were open
        then = connect_from(it, ["127.0.0.3", "127.0.0.9", "127.0.0.2"])
        assert await asyncio.to_thread(then[0].recv, 1) == b""  # none of its client's waited
        assert await asyncio.to_thread(first[0].recv, 1) == b""
        assert front.turns.of(ClientId("127.0.0.9")) == 1
        assert front.turns.of(ClientId("127.0.0.2")) == 1  # the newer one
        assert len(front.turns) == 2
        front.rest()
        for client in (*first, *then):
            client.close()


async def test_however_many_connect_no_more_descriptors_are_open_than_may_be(
    portal: StartPortal, caplog: pytest.LogCaptureFixture
) -> None:
    async with portal() as it:
        front = it.keeper.front
        # Its look-up of a name uses a descriptor, and would leave a gap in the numbers below.
        await until(lambda: "The login server does not answer" in caplog.text)
        hold_up(front)
        clients = connect_many(it, 60)
        os.close(free := os.dup(0))
        it.keeper.connections.most_accepted = free + 10
        await until(lambda: len(front.turns) >= 10)
        await until(lambda: sum(map(has_ended, clients)) == 60 - len(front.turns))
        assert len(front.turns) <= 11
        front.rest()
        for client in clients:
            client.close()


def has_ended(client: socket.socket) -> bool:
    """Whether the portal has closed a connection on which it has sent nothing."""
    with contextlib.suppress(BlockingIOError):
        return client.recv(1, socket.MSG_DONTWAIT) == b""
    return False


# --- shown ----------------------------------------------------------------------------------------


async def test_with_one_person_clicking_everything_is_shown(portal: StartPortal) -> None:
    async with portal() as it:
        for number in range(20):
            assert b" 511 " in await it.ask(GET.replace(b".com/ ", b".com/%d " % number))
        assert [one.request.path for one in it.flows.requests] == [f"/{at}" for at in range(20)]
        for one in it.flows.requests:
            assert one.marked == ":no_entry:"
            assert "has no session" in one.comment
            assert one.response
            assert one.response.status_code == 511
            assert "<!DOCTYPE html>" in (one.response.text or "")
            assert not one.live
        assert it.flows.handed_over == 0


async def test_above_the_limit_refusals_are_counted_and_the_log_says_how_many(
    portal: StartPortal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with portal(portal_shown=4, events=True) as it:
        for _ in range(10):
            assert (await say(await connect(it), GET * 10)).count(b"HTTP/1.1 511 ") == 10
        assert len(it.flows.requests) == 5
        later(shown.REPORT + 1)
        await until(lambda: "not shown" in caplog.text)
        assert "95 refusals of 1 clients were not shown" in caplog.text
        it.master.options.update(portal_shown=0)
        later(SOON)
        assert b" 511 " in await it.ask(GET)
        assert len(it.flows.requests) == 5
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    refusals = [one for one in events if one["event"] == "refused"]
    assert 1 + sum(one.get("repeats", 0) for one in refusals) == 101


async def test_a_watched_client_is_shown_and_each_of_its_requests_is_an_event(
    portal: StartPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display_limit, "WATCHED", Rate(100, 1000 * SOON))
    async with portal(portal_shown=0, events=True) as it:
        call = it.master.commands.execute
        await it.ask(GET)
        call("portal.watch 127.0.0.1")
        assert (await say(await connect(it), GET * 60)).count(b"HTTP/1.1 511 ") == 60
        assert (await say(await connect(it), GET * 60)).count(b"HTTP/1.1 511 ") == 60
        assert len(it.flows.requests) == 100
        call("portal.unwatch 127.0.0.1")
        await it.ask(GET)
        assert len(it.flows.requests) == 100
        for number in range(MOST_WATCHED):
            call(f"portal.watch 192.0.2.{number}")
        with pytest.raises(CommandError, match=r"8 clients are watched, and no more can be: 192"):
            call("portal.watch 192.0.2.99")
        with pytest.raises(CommandError, match="neither an address nor a MAC"):
            call("portal.watch it")
        assert it.flows.handed_over == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    detailed = [one for one in events if one["event"] == "refused" and one.get("path") == "/"]
    assert len(detailed) == 120
    assert [one["event"] for one in events].count("watched") == 1 + MOST_WATCHED


async def test_a_person_who_intercepts_can_stop_one_request_a_connection(
    portal: StartPortal,
) -> None:
    async with portal() as it:
        if it.master.addons.get("intercept") is None:
            it.master.addons.add(intercept.Intercept())
        it.master.options.update(intercept="~d outside.example.com")
        reader, writer = await connect(it)
        writer.write(GET * 2)
        await until(lambda: bool(it.flows.requests))
        (flow,) = it.flows.requests
        await until(lambda: flow.intercepted)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        it.master.options.update(intercept=None)
        flow.resume()
        assert (await until_closed(reader)).count(b"HTTP/1.1 511 ") == 1  # and no second one
        assert it.flows.handed_over == 1
        assert b" 511 " in await it.ask(GET)
        assert it.flows.handed_over == 1
        writer.close()
