"""428, 429 and 431 (RFC 6585 sections 3 to 5), for known and for unknown clients."""

import asyncio
import json
from pathlib import Path

import pytest

from capport.proxy.internals.http2_bounds import PREFACE
from conftest import SOON, Origin, Portal, StartPortal, one_answer, until_closed
from json_schemas import wrong_events
from proxy.hellos import real
from proxy.http2 import tls
from proxy.wire import GARDEN, Dialled, answers, garden, say, until, with_names

LIMITS = """
limits:
  header_field: 1KiB
  header_section: 4KiB
  require_conditions: [www.example.org]
"""
FEW = """
limits:
  requests: {count: 3, per: 1h}
  unknown_requests: {count: 3, per: 1h}
"""
KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
BROWSER = "User-Agent: Mozilla/5.0\r\n"

everyone = pytest.mark.parametrize("who", ["", KNOWN], ids=["unknown", "known"])


def request(origin: Origin, method: str = "GET", more: str = "", path: str = "/") -> bytes:
    host = f"{GARDEN}:{origin.port}"
    return f"{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


@pytest.mark.rfc(
    6585,
    "5",
    "both when the set of header fields in total is too large, and when a single header "
    "field is at fault",
)
@pytest.mark.rfc(6585, "5", "SHOULD specify which header field was too large")
@pytest.mark.rfc(6585, "5", "MAY be resubmitted after reducing the size")
@everyone
async def test_a_field_that_is_too_large_is_named(
    portal: StartPortal, origin: Origin, who: str
) -> None:
    async with portal(LIMITS + who) as it:
        with_names(it, GARDEN)
        (answer,) = answers(await it.ask(request(origin, more=f"X-Large: {'a' * 2000}\r\n")))
        assert answer.status == 431
        assert b"x-large" in answer.body.lower()
        assert answer.fields["cache-control"] == "no-store"
        many = "".join(f"X-{n}: {'a' * 900}\r\n" for n in range(5))
        (answer,) = answers(await it.ask(request(origin, more=many)))
        assert answer.status == 431
        assert b"x-1" not in answer.body.lower()
        just = await it.ask(request(origin, more=f"X-Small: {'a' * 900}\r\n"))
        assert answers(just)[0].status == (200 if who else 511)
    assert origin.connections == (1 if who else 0)


@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
@pytest.mark.rfc(6585, "4", "MAY include a Retry-After header")
@everyone
async def test_too_many_requests_are_told_when_to_come_again(
    portal: StartPortal, origin: Origin, who: str
) -> None:
    async with portal(FEW + who) as it:
        with_names(it, GARDEN)
        found = [answers(await it.ask(request(origin)))[0] for _ in range(5)]
        assert [answer.status for answer in found] == [200 if who else 511] * 3 + [429] * 2
        assert 0 < int(found[-1].fields["retry-after"]) <= 3600
        assert found[-1].fields["cache-control"] == "no-store"
    assert origin.connections == (3 if who else 0)


async def test_requests_of_a_kept_connection_count(portal: StartPortal, origin: Origin) -> None:
    async with portal(FEW) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(request(origin) * 5)
        found = [answers(await one_answer(reader))[0].status for _ in range(5)]
        assert found == [511] * 3 + [429] * 2
        writer.close()


async def test_what_goes_on_to_the_garden_counts_once(portal: StartPortal, origin: Origin) -> None:
    async with portal(FEW + garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it, GARDEN)
        found = [answers(await it.ask(request(origin)))[0].status for _ in range(4)]
        assert found == [200] * 3 + [429]
    assert origin.connections == 3


async def test_a_connect_counts_once_however_it_is_refused(
    portal: StartPortal, origin: Origin
) -> None:
    for agent, status in (("", b"511"), (BROWSER, b"200")):
        async with portal(FEW + "probes: strict\n") as it:
            head = f"CONNECT 192.0.2.80:443 HTTP/1.1\r\nHost: x\r\n{agent}\r\n".encode()
            first = [(await it.ask(head)).split(b" ")[1] for _ in range(3)]
            assert first == [status] * 3
            assert (await it.ask(request(origin))).split(b" ")[1] == b"429"


@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST", "PROPPATCH"])
async def test_an_update_needs_a_condition(
    portal: StartPortal, origin: Origin, method: str
) -> None:
    async with portal(LIMITS + KNOWN) as it:
        with_names(it, GARDEN)
        (answer,) = answers(await it.ask(request(origin, method)))
        assert answer.status == 428
        assert b"If-Match" in answer.body
        for condition in (
            'If-Match: "a"',
            "If-None-Match: *",
            "If-Unmodified-Since: x",
            'If: (["a"])',
        ):
            data = await it.ask(request(origin, method, f"{condition}\r\n"))
            assert answers(data)[0].status == 200
        assert answers(await it.ask(request(origin)))[0].status == 200
    assert origin.connections == 5


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_what_overwrites_its_destination_needs_to_say_that_it_does_not(
    portal: StartPortal, origin: Origin, method: str
) -> None:
    """RFC 4918 section 10.6. If two fields disagree, the origin may follow either."""
    async with portal(LIMITS + KNOWN) as it:
        with_names(it, GARDEN)
        fields = (
            *('If-Match: "a"', "Overwrite: T", "Overwrite: T\r\nOverwrite: F"),
            *("Overwrite: F", "overwrite:F", 'If: (["a"])'),
        )
        found = [
            answers(await it.ask(request(origin, method, f"{field}\r\n")))[0].status
            for field in fields
        ]
        assert found == [428] * 3 + [200] * 3
    assert origin.connections == 3


@pytest.mark.rfc(6585, "3", "requires the request to be conditional")
async def test_an_unknown_client_is_asked_to_sign_in_and_not_for_a_condition(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal(LIMITS) as it:
        with_names(it, GARDEN)
        assert answers(await it.ask(request(origin, "PUT")))[0].status == 511
    assert origin.connections == 0


async def test_limits_hold_in_transparent_mode(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    for who in ("", KNOWN):
        async with portal(FEW + who, mode="transparent") as it:
            head = b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
            found = [answers(await it.ask(head))[0].status for _ in range(4)]
            assert found == [200 if who else 511] * 3 + [429]


DROPS = "limits:\n  drop_after: {count: 3, per: 60s}\n"
HELLO = real()
FRAME = PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\1\4\0\0\0\1"
LARGE = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 66_000 + b"\r\n\r\n"


async def is_dropped(it: Portal, data: bytes, at: str = "127.0.0.1") -> bool:
    """Whether nothing comes back for `data` from a client at this address."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port, local_addr=(at, 0))
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(1), SOON) == b""
    except ConnectionError:
        return True
    finally:
        writer.close()


@pytest.mark.parametrize(
    "refused",
    [b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", LARGE, HELLO, b"GARBAGE\r\n\r\n"],
    ids=["a request", "a head too large to read", "TLS", "no request"],
)
@pytest.mark.rfc(6585, "7.2", "it may be more appropriate to just drop connections")
@pytest.mark.rfc(6585, "7.3", "it may be more appropriate to just drop connections")
async def test_a_client_that_was_refused_too_often_is_dropped_for_a_time(
    portal: StartPortal, dialled: Dialled, tmp_path: Path, refused: bytes
) -> None:
    dialled("192.0.2.80", 443)
    async with portal(DROPS, mode="transparent", events=True) as it:
        assert [await is_dropped(it, refused) for _ in range(6)] == [False] * 3 + [True] * 3
        assert not await is_dropped(it, refused, at="127.0.0.9")
        now, later = it.gate.now, 0.0
        it.gate.now = lambda: now() + later
        later = 55.0
        assert await is_dropped(it, refused)
        later = 60.0
        assert not await is_dropped(it, refused)
        await asyncio.to_thread(it.gate.events.close)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (dropped,) = [event for event in events if event["event"] == "dropped"]
    assert (dropped["client"], dropped["seconds"]) == ("127.0.0.1", 60.0)
    assert dropped["because"] == "it was refused more than 3 times in 60 s"


async def test_http2_beyond_a_bound_counts_towards_that_and_is_reported(
    portal: StartPortal, tmp_path: Path
) -> None:
    async with portal(DROPS, events=True) as it:
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(FRAME)
            await until_closed(reader)
            writer.close()
        assert await is_dropped(it, b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert wrong_events(events) == []
    reasons = {event["because"] for event in events if event["event"] == "refused"}
    assert reasons == {"not read: HTTP/2 beyond a bound, or invalid"}


async def test_what_a_dropped_client_has_open_ends_and_what_it_has_sent_is_not_answered(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal(DROPS + garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it, GARDEN)
        idle, kept = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(2)]
        other = await asyncio.open_connection("127.0.0.1", it.port, local_addr=("127.0.0.9", 0))
        for streams in (kept, other):
            streams[1].write(request(origin))
            assert b" 200 OK" in await one_answer(streams[0])
        await asking_in_one(it, 5, 3)
        assert await until_closed(idle[0]) == b""
        assert await until_closed(kept[0]) == b""
        await until(lambda: not len(it.keeper.connections))
        for streams in (idle, kept, other):
            streams[1].close()


async def asking_in_one(it: Portal, count: int, answered: int) -> None:
    """Sends `count` requests in one segment; the first `answered` get a 511, and no other."""
    streams = await asyncio.open_connection("127.0.0.1", it.port)
    data = await say(streams, b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n" * count, ends=False)
    assert [answer.status for answer in answers(data)] in ([511] * answered, [])


async def test_a_client_that_signs_in_is_dropped_no_longer(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal(DROPS) as it:
        with_names(it, GARDEN)
        await asking_in_one(it, 4, 3)
        assert await is_dropped(it, request(origin))
        it.grant("127.0.0.1")
        assert answers(await it.ask(request(origin)))[0].status == 200


async def test_a_known_client_is_dropped_too(portal: StartPortal, origin: Origin) -> None:
    async with portal(KNOWN + DROPS + "  header_field: 256\n") as it:
        with_names(it, GARDEN)
        large = request(origin, more=f"X-Large: {'a' * 300}\r\n")
        assert [await is_dropped(it, large) for _ in range(5)] == [False] * 3 + [True] * 2
        assert await is_dropped(it, request(origin))
    assert origin.connections == 0


async def test_what_passes_is_never_dropped(portal: StartPortal, origin: Origin) -> None:
    async with portal(KNOWN + DROPS) as it:
        with_names(it, GARDEN)
        for _ in range(6):
            assert answers(await it.ask(request(origin)))[0].status == 200


@everyone
async def test_a_head_that_is_too_large_to_be_read_is_reported_and_counts(
    portal: StartPortal, origin: Origin, tmp_path: Path, who: str
) -> None:
    large = request(origin, more=f"X-Large: {'a' * 70_000}\r\n")
    async with portal(who + DROPS, events=True) as it:
        assert [await is_dropped(it, large) for _ in range(5)] == [False] * 3 + [True] * 2
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert wrong_events(events) == []
    refused = [one for one in events if one["event"] == "refused"]
    assert {(one["client"], one["status"]) for one in refused} == {("127.0.0.1", 431)}
    assert "dropped" in {one["event"] for one in events}
    assert origin.connections == 0


async def test_nobody_is_dropped_unless_the_policy_says_so(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        for _ in range(50):
            assert answers(await it.ask(request(origin)))[0].status == 511


async def test_limits_hold_for_a_known_client_whose_http2_is_inspected(
    portal: StartPortal, dialled: Dialled
) -> None:
    hangs_up = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    dialled("127.0.0.1", hangs_up.sockets[0].getsockname()[1])  # nothing is asked of it
    policy = f"tls: {{known: inspect}}\n{KNOWN}{LIMITS}  requests: {{count: 2, per: 1h}}\n"
    async with portal(policy, mode="transparent") as it:
        client = await tls(it, "h2", sni=GARDEN)
        large = await client.answer(client.ask(("x-large", "a" * 2000), authority=GARDEN))
        assert (large.status, b"x-large" in large.body) == (431, True)
        assert client.goodbye
        assert client.goodbye.error_code == 0
        await client.close()
        client = await tls(it, "h2", sni=GARDEN)
        update = await client.answer(client.ask(method="PUT", authority=GARDEN))
        assert (update.status, b"If-Match" in update.body) == (428, True)
        fast = await client.answer(client.ask(authority=GARDEN))
        assert (fast.status, fast.fields["retry-after"]) == (429, "1800")
        await client.close()
    hangs_up.close()


@everyone
@pytest.mark.parametrize("agent", ["", BROWSER], ids=["a program", "a browser"])
async def test_a_connect_that_is_over_a_limit_gets_no_tunnel(
    portal: StartPortal, who: str, agent: str
) -> None:
    """A tunnel would lead a known client to where it wants, whatever the limit."""
    to = "192.0.2.80:443"
    connect = f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{agent}".encode()
    async with portal(FEW + "  header_field: 1KiB\n" + who) as it:
        large = connect + b"X-Large: " + b"a" * 2000 + b"\r\n\r\n"
        for status in (431, 431, 431):
            assert answers(await it.ask(large))[0].status == status
        (answer,) = answers(await it.ask(connect + b"\r\n"))
        assert (answer.status, answer.fields["connection"]) == (429, "close")
        assert 0 < int(answer.fields["retry-after"]) <= 1200
