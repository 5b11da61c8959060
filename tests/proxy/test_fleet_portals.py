"""Two whole portals that share a Redis: a client that signs in at one is known at the other."""

import asyncio
from contextlib import suppress
from pathlib import Path

import requires
from capport.core.client import ClientId
from conftest import SOON, Portal, running_portal
from stores.redis_server import server

pytestmark = requires.tool("redis-server")

ASK = b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n"


async def answers(portal: Portal, status: int) -> None:
    """Waits until the portal answers with `status`: 511 to an unknown client, 502 to a known."""
    async with asyncio.timeout(SOON):
        while True:
            with suppress(asyncio.IncompleteReadError):  # a revocation cuts what is open
                if (await portal.ask(ASK)).startswith(b"HTTP/1.1 %d " % status):
                    return


async def test_a_sign_in_at_one_portal_counts_at_the_other_until_it_is_revoked_there(
    tmp_path: Path,
) -> None:
    with server(tmp_path / "redis") as redis:
        folders = [tmp_path / name for name in ("one", "other")]
        for folder in folders:
            folder.mkdir()
        urls = [f"{redis.url}?file={folder}/sessions.db" for folder in folders]
        async with (
            running_portal(folders[0], sessions=urls[0]) as one,
            running_portal(folders[1], sessions=urls[1]) as other,
        ):
            await answers(other, 511)
            await asyncio.to_thread(one.grant, "127.0.0.1")
            await answers(one, 502)
            await answers(other, 502)
            await asyncio.to_thread(redis.kill)
            await asyncio.to_thread(one.grant, "192.0.2.1")  # it does not wait for Redis
            assert one.gate.store.fault
            await answers(other, 502)  # until the lease is over
            await asyncio.to_thread(redis.start)
            await asyncio.to_thread(other.gate.revoke, ClientId("127.0.0.1"))
            await answers(other, 511)
            await answers(one, 511)
