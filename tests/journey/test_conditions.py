"""Vouchers and passwords, from the command that makes them to online, through the proxy."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conftest import SOON, Origin
from journey.guests import Guest
from ports import free_port
from proxy.mitmdump import started


class Place:
    """A mitmdump with the portal, its policy, and the origin behind it."""

    def __init__(self, policy: Path, proxy: int, login: int, page: str) -> None:
        self.policy, self.proxy, self.login, self.page = policy, proxy, login, page

    def guest(self, address: str) -> Guest:
        return Guest(self.proxy, self.login, address, encrypted=False)

    async def capport(self, *arguments: str, said: str = "") -> str:
        """What a `capport` command prints."""
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("capport")), *arguments),
            *("--policy", str(self.policy)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(said.encode()), SOON)
        assert process.returncode == 0, err.decode()
        return out.decode()


@asynccontextmanager
async def place(folder: Path, origin: Origin, conditions: str) -> AsyncIterator[Place]:
    login = free_port()
    policy = folder / "policy.yaml"
    policy.write_text(
        f"login_server:\n  listen: 127.0.0.1:{login}\n  conditions: {conditions}\n"
        f"sessions:\n  store: sqlite://{folder}/sessions.db\n  lifetime: 8h\n"
    )
    page = f"http://127.0.0.1:{origin.port}/news"
    options = ("--set", f"portal_policy={policy}")
    async with started(folder / "home", *options, store=None) as process:
        yield Place(policy, process.port, login, page)


async def test_a_voucher_admits_as_many_devices_as_it_says(tmp_path: Path, origin: Origin) -> None:
    async with place(tmp_path, origin, "voucher") as it:
        sheet = await it.capport("voucher", "new", "--for", "2h", "--devices", "2")
        found = re.search(r"\b(?:[0-9A-Z]{4}[ -]){3}[0-9A-Z]{4}\b", sheet)
        assert found, sheet
        one, two, three = (it.guest(f"127.0.0.{n}") for n in (2, 3, 4))
        wrong = await one.sign_in(code="0000-0000-0000-0000")
        assert (wrong.status, (await one.visit(it.page)).status) == (403, 511)
        for guest in (one, two):
            welcome = await guest.sign_in_for(it.page, code=found[0])
            assert it.page in welcome.links
            assert "<strong>2\N{NO-BREAK SPACE}hours</strong>" in welcome.text
            assert (await guest.visit(it.page)).status == 200
        assert (await three.sign_in(code=found[0])).status == 403
        assert (await three.visit(it.page)).status == 511
        await it.capport("voucher", "revoke", "1")
        assert (await one.visit(it.page)).status == 511
        assert (await two.visit(it.page)).status == 511


async def test_a_password_admits_its_user_and_a_wrong_one_does_not(
    tmp_path: Path, origin: Origin
) -> None:
    async with place(tmp_path, origin, "password") as it:
        await it.capport("user", "add", "alice", said="correct horse battery\n")
        guest = it.guest("127.0.0.2")
        wrong = await guest.sign_in(name="alice", password="incorrect horse")
        unknown = await guest.sign_in(name="mallory", password="incorrect horse")
        assert (wrong.status, unknown.status) == (403, 403)
        assert (await guest.visit(it.page)).status == 511
        await guest.sign_in_for(it.page, name="alice", password="correct horse battery")
        assert (await guest.visit(it.page)).status == 200
        assert "alice" in (await guest.get("/status")).text
        assert "alice" in await it.capport("clients")
