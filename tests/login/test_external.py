"""The example of an external login server grants access, with nothing but the API."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from capport.api.back_channel import BackChannel
from login.example import SCRIPT, example
from login.house import Browser, House, at, house

PAGE = "http://www.example.org/news?a=1&b=2"


@asynccontextmanager
async def external(folder: Path) -> AsyncIterator[tuple[House, Browser]]:
    async with house() as h:
        channel = BackChannel(h.context, folder / "api.sock")
        channel.start()
        try:
            async with example(channel.path) as port:
                yield h, Browser(port, "127.0.0.2")
        finally:
            await channel.stop()


async def test_a_client_with_the_password_is_online_and_may_go_on(tmp_path: Path) -> None:
    async with external(tmp_path) as (h, browser):
        state = h.context.states.mint(at("127.0.0.2"), PAGE)
        form = await browser.get(f"/?state={state}")
        assert (form.status, form.action, list(form.fields)) == (200, None, ["word"])
        wrong = await browser.post(f"/?state={state}", {"word": "sardine"})
        assert (wrong.status, h.session()) == (403, None)
        assert "Not the word" in wrong.text
        assert "Not the word" not in form.text
        right = await browser.post(f"/?state={state}", {"word": "swordfish"})
        assert right.links == [PAGE]
        assert h.session() is not None
        again = await browser.post(f"/?state={state}", {"word": "swordfish"})
        assert again.links == [PAGE]  # a page that is loaded again


async def test_what_it_shows_of_others_words_is_escaped(tmp_path: Path) -> None:
    page = "http://www.example.org/?a='&b=(1)&amp;"
    async with external(tmp_path) as (h, browser):
        state = h.context.states.mint(at("127.0.0.2"), page)
        online = await browser.post(f"/?state={state}", {"word": "swordfish"})
        assert online.links == [page]
        assert "&amp;amp;" in online.text


async def test_a_client_that_is_blocked_or_was_signed_out_is_not_said_to_be_online(
    tmp_path: Path,
) -> None:
    async with external(tmp_path) as (h, browser):
        state = h.context.states.mint(at("127.0.0.2"), PAGE)
        await browser.post(f"/?state={state}", {"word": "swordfish"})
        h.gate.revoke(h.client().id)
        answer = await browser.post(f"/?state={state}", {"word": "swordfish"})
        assert (answer.status, answer.links, h.session()) == (404, [], None)


async def test_it_admits_no_client_without_a_state_of_its_own(tmp_path: Path) -> None:
    async with external(tmp_path) as (h, browser):
        anothers = h.context.states.mint(at("127.0.0.3"))
        for state in ("", "x", "../sessions", "%00", anothers):
            assert (await browser.get(f"/?state={state}")).status == 404
            answer = await browser.post(f"/?state={state}", {"word": "swordfish"})
            assert answer.status == 404
        assert list(h.gate.store.sessions()) == []


async def test_without_the_portal_it_asks_to_try_again_and_says_why(tmp_path: Path) -> None:
    async with example(tmp_path / "none.sock", tmp_path / "said") as port:
        answer = await Browser(port, "127.0.0.2").get("/?state=x")
        assert answer.status == 503
        assert "try again" in answer.text
    assert "FileNotFoundError" not in answer.text
    said = (tmp_path / "said").read_text()
    assert "FileNotFoundError" in said
    assert "api.sock.connect(SOCKET)" in said


async def test_without_its_arguments_it_says_which() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT)), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"scripts/external-login-server /var/lib/capport/api.sock 192.0.2.1 8088" in said
    assert b"Traceback" not in said


def test_it_is_a_login_server_in_40_lines() -> None:
    shebang, *lines = [line for line in SCRIPT.read_text().splitlines() if line]
    assert shebang.startswith("#!")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
