"""The login server as Chromium shows it, and as axe reads it."""

import json
from pathlib import Path

import pytest
from tornado import httpserver, netutil, web

import requires
from capport.core.policy import Conditions
from login.chromium import Tab, axe, chromium
from login.house import House, house, policy, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), requires.tool("chromium")]

PAGE = "http://www.example.org/news?a=b"
WIDTHS = {"phone": 360, "desk": 1280}


class _Origin(web.RequestHandler):
    def get(self) -> None:
        self.finish("<!DOCTYPE html><title>News</title><h1>The news</h1>")


def _origin() -> tuple[httpserver.HTTPServer, int]:
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = httpserver.HTTPServer(web.Application([(r"/news", _Origin)]))
    server.add_sockets(sockets)
    return server, sockets[0].getsockname()[1]


async def test_the_whole_way_by_the_buttons_alone(tmp_path: Path) -> None:
    origin, port = _origin()
    async with house() as h, chromium(tmp_path, f"www.example.org 127.0.0.1:{port}") as tab:
        state = h.context.states.mint(h.client("127.0.0.1"), PAGE)
        await tab.open(f"http://127.0.0.1:{h.port}/?state={state}&lang=en")
        await tab.click("form button")
        assert "You are online" in await tab.text()
        assert h.session("127.0.0.1") is not None
        await tab.click("a.button")
        assert (await tab.run("location.href"), "The news" in await tab.text()) == (PAGE, True)
        await tab.open(f"http://127.0.0.1:{h.port}/status?lang=en")
        await tab.click("form[action='/sign-out'] button")
        assert "You are signed out" in await tab.text()
        assert h.session("127.0.0.1") is None
        await tab.click("a.button")
        assert "Welcome to Example Café" in await tab.text()
        assert [one for one in tab.said if "Content Security Policy" in str(one)] == []
    origin.stop()


async def test_it_works_without_script(tmp_path: Path) -> None:
    async with house() as h, chromium(tmp_path) as tab:
        await tab.send("Emulation.setScriptExecutionDisabled", value=True)
        await tab.open(f"http://127.0.0.1:{h.port}/?lang=en")
        await tab.click("form button")
        assert h.session("127.0.0.1") is not None


async def test_it_works_by_keyboard_alone(tmp_path: Path) -> None:
    async with house() as h, chromium(tmp_path) as tab:
        await tab.open(f"http://127.0.0.1:{h.port}/?lang=en")
        await _tab_to(tab, "form button")
        await tab.press("Enter")
        await tab.shows("You are online")
        await _tab_to(tab, "form[action='/sign-out'] button")
        await tab.press("Enter")
        await tab.shows("You are signed out")


async def _tab_to(tab: Tab, selector: str) -> None:
    """Presses Tab until the element has the focus, and can be seen to have it."""
    focus = "(e => e.matches({}) && getComputedStyle(e).outlineStyle)(document.activeElement)"
    for _ in range(20):
        await tab.press("Tab")
        if (outline := await tab.run(focus.format(json.dumps(selector)))) is not False:
            assert outline == "solid"
            return
    raise AssertionError(f"{selector} is not reached")


async def test_after_a_sign_out_the_back_button_does_not_say_online(tmp_path: Path) -> None:
    async with house() as h, chromium(tmp_path) as tab:
        base = f"http://127.0.0.1:{h.port}"
        await tab.open(f"{base}/?lang=en")
        await tab.click("form button")
        await tab.back()
        await tab.shows("You are online")  # and not the form, which is met
        await tab.open(f"{base}/status?lang=en")
        await tab.click("form[action='/sign-out'] button")
        await tab.shows("You are signed out")
        await tab.back()
        await tab.shows("Welcome to Example Café")


async def test_a_page_left_open_says_so_when_the_session_is_over(tmp_path: Path) -> None:
    async with house() as h, chromium(tmp_path) as tab:
        await tab.open(f"http://127.0.0.1:{h.port}/?lang=en")
        await tab.click("form button")
        h.clock.at += 8 * 3600 - 1.5
        await tab.open(f"http://127.0.0.1:{h.port}/status?lang=en")
        h.clock.at += 1.5
        await tab.shows("Your session has ended")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_any_accent_of_an_operators_can_be_read(tmp_path: Path, scheme: str) -> None:
    login = tmp_path / "login"
    login.mkdir()
    async with house(policy(file=tmp_path / "lab.yaml")) as h, chromium(tmp_path / "c") as tab:
        await tab.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        state = h.context.states.mint(h.client("127.0.0.1"), PAGE)
        await tab.open(f"http://127.0.0.1:{h.port}/?state={state}")
        await tab.click("form button")
        h.clock.at += 60
        found = {}
        for accent in ("#0b57d0", "#b3261e", "#ffd400", "#00e000", "#757575", "#000", "#fff"):
            (login / "theme.css").write_text(f":root {{ --accent: {accent} }}", "utf-8")
            await tab.open(f"http://127.0.0.1:{h.port}/welcome?state={state}")
            found[accent] = await axe(tab)
        assert {accent: each for accent, each in found.items() if each} == {}


async def test_another_site_cannot_frame_it_nor_send_its_form(tmp_path: Path) -> None:
    origin, port = _origin()
    async with house() as h, chromium(tmp_path, f"www.example.org 127.0.0.1:{port}") as tab:
        ours = f"http://127.0.0.1:{h.port}"
        await tab.open(f"{ours}/")  # so that there is a cookie to be abused
        await tab.open(PAGE)
        await tab.run(
            f"new Promise(done => {{ const f = document.createElement('iframe'); f.src = '{ours}/';"
            " f.onload = () => done(1); document.body.append(f) })"
        )

        async def reported() -> bool:
            await tab.run("1")  # which hears what the tab has said before
            return "frame-ancestors" in str(tab.said)

        await until(reported, "the report that it was not framed")
        await tab.run(
            f"document.body.insertAdjacentHTML('beforeend', '<form method=post action={ours}"
            "/sign-in><button id=go>Win</button></form>')"
        )
        await tab.click("#go")
        assert h.session("127.0.0.1") is None
    origin.stop()


async def _pages(h: House, tab: Tab) -> list[str]:
    """Opens each kind of page; what is wrong on it."""
    base = f"http://127.0.0.1:{h.port}"
    found: list[str] = []
    state = h.context.states.mint(h.client("127.0.0.1"), PAGE)

    async def look(name: str) -> None:
        problems = await axe(tab)
        if await tab.run("document.documentElement.scrollWidth > innerWidth"):
            problems.append("it must be scrolled sideways")
        small = "[...document.querySelectorAll('a, button, input:not([type=hidden])')].filter(e => "
        small += "e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"
        problems += [f"too small for a finger: {one}" for one in await tab.run(small)]
        found.extend(f"{name}: {problem}" for problem in problems)

    for conditions in Conditions:
        h.ask(conditions)
        await tab.open(f"{base}/?lang=de")
        await look(conditions)
    await tab.run("document.querySelector('form').noValidate = true")
    await tab.click("form button")
    await look("wrong password")
    h.ask(Conditions.TERMS)
    await tab.open(f"{base}/?lang=fr&state={state}")
    await tab.click("form button")
    await look("welcome")
    for path in ("/status", "/nothing", "/?more=1"):
        await tab.open(f"{base}{path}")
        await look(path)
    await tab.open(f"{base}/status?lang=es")
    await tab.click("form[action='/sign-out'] button")
    await look("signed out")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
async def test_axe_finds_nothing_on_any_page(tmp_path: Path, width: str, scheme: str) -> None:
    async with house(policy()) as h, chromium(tmp_path) as tab:
        await tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=WIDTHS[width],
            height=740,
            deviceScaleFactor=1,
            mobile=width == "phone",
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await tab.send("Emulation.setEmulatedMedia", features=[feature])
        assert await _pages(h, tab) == []
