"""The example of a login server of one's own lets on, by the API alone."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capport.portal.backchannel import BackChannel
from portal.house import Browser, House, at, free_port, house

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "external-login-server"
PAGE = "http://www.example.org/news?a=1&b=2"


@asynccontextmanager
async def example(api: Path, said: Path = Path(os.devnull)) -> AsyncIterator[int]:
    """The example, which asks the API at `api`; the port that it listens on.

    What it says goes to `said`.
    """
    port = free_port()
    with said.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(SCRIPT), str(api), "127.0.0.1", str(port), "swordfish"),
            stderr=stderr,
        )
    try:
        await _answers(port)
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def external(folder: Path) -> AsyncIterator[tuple[House, Browser]]:
    async with house() as h:
        channel = BackChannel(h.portal, folder / "api.sock")
        channel.start()
        try:
            async with example(channel.path) as port:
                yield h, Browser(port, "127.0.0.2")
        finally:
            await channel.stop()


async def _answers(port: int) -> None:
    for _ in range(400):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise AssertionError("the example does not start")


async def test_whoever_knows_the_word_is_online_and_may_go_on(tmp_path: Path) -> None:
    async with external(tmp_path) as (h, browser):
        state = h.portal.states.mint(at("127.0.0.2"), PAGE)
        form = await browser.get(f"/?state={state}")
        wrong = await browser.post("/", form.fields | {"word": "sardine"})
        assert (wrong.status, h.session()) == (403, None)
        assert "not the word" in wrong.text
        assert "not the word" not in form.text
        right = await browser.post("/", form.fields | {"word": "swordfish"})
        assert right.links == [PAGE]
        assert h.session() is not None


async def test_it_lets_nobody_on_without_a_state_of_its_own(tmp_path: Path) -> None:
    async with external(tmp_path) as (h, browser):
        anothers = h.portal.states.mint(at("127.0.0.3"))
        for state in ("", "x", "../sessions", "%00", anothers):
            assert (await browser.get(f"/?state={state}")).status == 404
            answer = await browser.post("/", {"state": state, "word": "swordfish"})
            assert answer.status == 404
        assert list(h.gate.store.sessions()) == []


async def test_without_the_portal_it_asks_to_try_again_and_says_why_in_a_line(
    tmp_path: Path,
) -> None:
    async with example(tmp_path / "none.sock", tmp_path / "said") as port:
        answer = await Browser(port, "127.0.0.2").get("/?state=x")
        assert answer.status == 503
        assert "try again" in answer.text
    said = (tmp_path / "said").read_text()
    assert f"{tmp_path}/none.sock: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [(), ("a.sock", "127.0.0.1", "port", "word")])
async def test_without_its_arguments_it_says_which(arguments: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), *arguments), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert said.startswith(b"usage: ")
    assert said.count(b"\n") == 1
