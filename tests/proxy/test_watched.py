"""Each request and each handshake of a watched client is an event of its own, and has no secret."""

import asyncio
import json
from pathlib import Path
from typing import Any

from capport.core.client import ClientId
from capport.report.portal_traces import COOKIE, ETAG, FOLDER
from conftest import Origin, Portal, StartPortal
from proxy.hellos import over_tls, trusting_all
from proxy.wire import GARDEN, Dialled, garden, with_names

CANARY = "s3cret"
HERE = ClientId("127.0.0.1")


def get(url: str, *fields: str) -> bytes:
    """A request with a canary wherever a client may have a credential."""
    host = url.split("/")[2].rpartition("@")[2]
    head = (f"GET {url} HTTP/1.1", f"Host: {host}", "Connection: close", *fields)
    return "\r\n".join((*head, "", "")).encode()


def events_of(folder: Path, event: str) -> list[dict[str, Any]]:
    """The events of that kind. The portal has ended, so all of them are written."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [it for it in map(json.loads, lines) if it["event"] == event]


async def watching(it: Portal, *requests: bytes) -> list[bytes]:
    it.keeper.service.watch(HERE)
    return [(await it.ask(request)).split(b" ", 2)[1] for request in requests]


async def test_each_refused_request_of_a_watched_client_is_an_event_with_its_path_and_agent(
    portal: StartPortal, tmp_path: Path
) -> None:
    request = get("http://x.test/a/b?q=1", "User-Agent: axios/1.7.2", "Accept: application/json")
    async with portal(events=True) as it:
        assert await watching(it, request, request) == [b"511", b"511"]
        it.keeper.service.unwatch(HERE)
        await it.talk(request)
    first, second, third = events_of(tmp_path, "refused")
    assert first["path"] == "/a/b"
    assert first["agent"] == "axios/1.7.2"
    assert first["accept"] == "application/json"
    assert (first["scheme"], first["port"], first["status"]) == ("http", 80, 511)
    assert second == first | {"time": second["time"]}
    assert "path" not in third
    (watched,) = events_of(tmp_path, "watched")
    assert watched["kernel_forwards"] is False
    assert events_of(tmp_path, "unwatched")


async def test_a_watched_clients_forwarded_requests_are_events_with_the_address_that_answered(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    place = f"{GARDEN}:{origin.port}"
    async with portal(garden(place), events=True) as it:
        with_names(it, GARDEN)
        await watching(it, get(f"http://{place}/in"))
        it.grant("127.0.0.1")
        here = f"127.0.0.1:{origin.port}"
        await watching(it, get(f"http://{here}/out"), f"CONNECT {here} HTTP/1.1\r\n\r\n".encode())
        closed = get("http://127.0.0.1:1/closed")
        await watching(it, closed)
    passed = [
        (line.get("path"), line.get("status"), line.get("answered_by"), "error" in line)
        for line in events_of(tmp_path, "passed")
    ]
    assert passed == [
        ("/in", 200, "garden", False),
        ("/out", 200, "origin", False),
        (None, 200, "origin", False),
        ("/closed", None, None, True),
    ]


async def test_a_permitted_request_that_cannot_be_forwarded_is_refused_and_not_passed(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    place = f"{GARDEN}:{origin.port}"
    async with portal(garden(place), events=True) as it:
        with_names(it, GARDEN)
        assert await watching(it, get(f"http://{place}/", "X: a\x01b")) == [b"400"]
        (shown,) = it.flows.requests
    (event,) = events_of(tmp_path, "refused")
    assert (event["status"], event["host"], events_of(tmp_path, "passed")) == (400, GARDEN, [])
    assert shown.marked == ":no_entry:"
    assert shown.comment.startswith("400: it cannot be forwarded as written, although ")


async def test_an_event_shows_what_only_a_portals_reply_can_have_given(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    here = f"http://127.0.0.1:{origin.port}"
    async with portal("clients:\n  - {address: 127.0.0.1, access: known}\n", events=True) as it:
        await watching(
            it,
            get(f"{here}{FOLDER}logo.png", "Referer: http://me:s3cret@x.test/page?s3cret"),
            get(f"{here}/page", f"If-None-Match: {ETAG}", f"Cookie: a=b; {COOKIE}=1"),
            get(f"{here}/page", "Range: bytes=512-"),
            get(f"{here}/page", "If-None-Match: W/1", "Cookie: a=b"),
        )
    logo, page, rest, other = events_of(tmp_path, "passed")
    assert (logo["traces"], logo["referer"]) == ("url", "http://x.test/page")
    assert page["traces"] == "validator cookie"
    assert rest["range"] == 512
    assert "traces" not in other


async def test_each_handshake_of_a_watched_client_is_an_event(
    portal: StartPortal, origin: Origin, dialled: Dialled, tmp_path: Path
) -> None:
    dialled("127.0.0.1", origin.port)

    async def shakes_hands() -> None:
        connection = await asyncio.open_connection("127.0.0.1", it.port)
        try:
            await asyncio.wait_for(over_tls(connection, trusting_all([])), 10)
        except OSError:
            pass
        finally:
            connection[1].close()

    async with portal(mode="transparent", events=True) as it:
        it.keeper.service.watch(HERE)
        await shakes_hands()
        await shakes_hands()
        it.grant("127.0.0.1")
        await shakes_hands()
    outcomes = [(line["action"], line["outcome"]) for line in events_of(tmp_path, "tls")]
    assert outcomes == [("refuse", "refused")] * 2 + [("tunnel", "passed")]


async def test_no_credential_of_a_watched_client_is_in_its_events(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    fields = (
        f"Cookie: id={CANARY}; also={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"Proxy-Authorization: Basic {CANARY}",
        f"Referer: http://user:{CANARY}@x.test/?token={CANARY}",
    )
    here = f"127.0.0.1:{origin.port}"
    async with portal(events=True) as it:
        for url in (f"http://{here}/?t={CANARY}", f"http://u:{CANARY}@{here}/", "http:// x/"):
            await watching(it, get(url, *fields))
        it.grant("127.0.0.1")
        await watching(it, get(f"http://{here}/?t={CANARY}", *fields))
    written = (tmp_path / "events.jsonl").read_text()
    assert CANARY not in written
    assert events_of(tmp_path, "refused")[0]["cookies"] == 2
    assert events_of(tmp_path, "passed")[0]["authorizations"] == 2
