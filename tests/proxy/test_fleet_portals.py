"""Two whole portals that share a Redis: what is granted, used or revoked at one counts at both."""

import asyncio
import re
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from mitmproxy import ctx

import requires
from capport import cli
from capport.core.client import ClientId
from capport.service.service import Service
from capport.web.shared_records import FIRST_NUMBER
from conftest import SOON, Portal, running_portal
from login.house import Browser, until
from ports import free_port
from stores.redis_server import server

pytestmark = requires.tool("redis-server")

ASK = b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n"


async def answers(portal: Portal, status: int) -> None:
    """Waits until the portal answers with `status`: 511 to an unknown client, 502 to a known."""
    with pytest.MonkeyPatch.context() as patch:
        # mitmproxy expects one master in a process, and makes the connections' handlers for it.
        patch.setattr(ctx, "master", portal.master)
        patch.setattr(ctx, "options", portal.master.options)
        await _answers(portal, status)


async def _answers(portal: Portal, status: int) -> None:
    async with asyncio.timeout(SOON):
        while True:
            # A revocation cuts what is open.
            with suppress(asyncio.IncompleteReadError, ConnectionResetError):
                if (await portal.ask(ASK)).startswith(b"HTTP/1.1 %d " % status):
                    return


def accepts_vouchers(portal: Portal) -> bool:
    service = portal.keeper.service
    assert isinstance(service, Service)
    assert service.login
    book = service.login.context.records.book
    assert book
    return book.fault is None


async def test_a_sign_in_at_one_portal_counts_at_the_other_until_it_is_revoked_there(
    tmp_path: Path,
) -> None:
    with server(tmp_path / "redis") as redis:
        folders = [tmp_path / name for name in ("one", "other")]
        urls = [redis.url_of_router(folder) for folder in folders]
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


async def test_a_voucher_for_two_devices_admits_two_at_both_portals_whatever_redis_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(tmp_path / "redis") as redis:
        folders = [tmp_path / name for name in ("one", "other")]
        urls, policies, ports = [], [], []
        for folder in folders:
            urls.append(redis.url_of_router(folder))
            ports.append(port := free_port())
            login = f"{{listen: 127.0.0.1:{port}, conditions: voucher}}"
            policies.append(f"login_url: http://127.0.0.1:{port}/\nlogin_server: {login}\n")

        def command(*words: str, at: int) -> str:
            assert cli.main(["voucher", *words, "--sessions", urls[at]]) == 0
            return capsys.readouterr().out

        async with (
            running_portal(folders[0], policies[0], sessions=urls[0], events=True) as one,
            running_portal(folders[1], policies[1], sessions=urls[1]) as other,
        ):
            guests = [Browser(ports[n % 2], f"127.0.0.{2 + n}") for n in range(6)]

            async def agree() -> None:
                """Waits until both know of each other, and have put back what they know."""
                for portal in (one, other):
                    await until(partial(accepts_vouchers, portal), "vouchers")

            async def sign_in(guest: Browser) -> int:
                return (await guest.sign_in(code=code)).status

            def known(portal: Portal) -> set[str]:
                now = portal.gate.now()
                ids = [ClientId(guest.address) for guest in guests]
                return {str(each) for each in ids if portal.gate.store.find((each,), now)}

            sheet = await asyncio.to_thread(command, "new", "--devices", "2", at=0)
            code = re.findall(r"\w{4}(?:-\w{4}){3}", sheet)[0]
            await agree()
            statuses = await asyncio.gather(*map(sign_in, guests))
            assert Counter(statuses) == {303: 2, 403: 4}
            admitted = {g.address for g, s in zip(guests, statuses, strict=True) if s == 303}
            await until(lambda: known(one) == known(other) == admitted, "both sessions at both")
            await asyncio.to_thread(redis.kill)
            late = Browser(ports[0], "127.0.0.99")
            page = await late.sign_in(code=code)
            assert (page.status, page.headers["Retry-After"]) == (503, "10")
            assert "accepts none" in page.text
            assert known(one) == known(other) == admitted
            events = folders[0] / "events.jsonl"
            await until(lambda: "single-use states are refused" in events.read_text(), "a fault")
            await asyncio.to_thread(redis.start)  # with nothing in it
            await agree()
            assert await sign_in(late) == 403
            number = str(FIRST_NUMBER)
            assert f"{number} " in await asyncio.to_thread(command, "list", at=1)
            said = await asyncio.to_thread(command, "revoke", number, at=1)
            assert {line.split()[0] for line in said.splitlines()[1:]} == admitted
            await until(lambda: not known(one) and not known(other), "the end of both sessions")
            assert await sign_in(Browser(ports[0], admitted.pop())) == 403
