"""Drives a real Chromium by its own protocol over pipes, so it can run in a namespace."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import axe_core_python  # type: ignore[import-untyped]

from conftest import SOON

LARGEST = 1 << 26  # bytes in one answer: a picture of a page


class Gone(Exception):
    """The page went away during a command, because the tab is loading another."""


class Browser:
    """The browser itself; it receives the messages of its tabs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = count(1)
        self._tabs: dict[str, Tab] = {}
        self._lock = asyncio.Lock()

    async def send(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """The answer to one command. Raises Gone for a command that failed."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if session:
            asked["sessionId"] = session
        async with self._lock:
            self._writer.write(json.dumps(asked).encode() + b"\0")
            while True:
                got = json.loads(await asyncio.wait_for(self._read(), SOON))
                if got.get("id") == number:
                    if "error" in got:
                        raise Gone(got["error"])
                    result: dict[str, Any] = got["result"]
                    return result
                if (tab := self._tabs.get(got.get("sessionId", ""))) is not None:
                    tab.hear(got.get("method", ""), got.get("params", {}))

    async def urls(self) -> dict[str, str]:
        """The URL of each tab, by the id that `tab` takes."""
        targets = (await self.send("Target.getTargets"))["targetInfos"]
        return {one["targetId"]: one["url"] for one in targets if one["type"] == "page"}

    async def opened(self, start: str) -> str:
        """The id of a tab with a URL that begins with `start`, once there is one."""
        for _ in range(int(SOON / 0.05)):
            for target, url in (await self.urls()).items():
                if url.startswith(start):
                    return target
            await asyncio.sleep(0.05)
        raise AssertionError(f"no tab with {start}: {await self.urls()}")

    async def tab(self, target: str | None = None) -> "Tab":
        """A tab that is open, or a new one."""
        if target is None:
            target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        tab = Tab(self, attached["sessionId"])
        self._tabs[tab.session] = tab
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        return tab

    async def _read(self) -> bytes:
        try:
            return (await self._reader.readuntil(b"\0"))[:-1]
        except asyncio.IncompleteReadError:
            raise AssertionError("Chromium has gone") from None


class Tab:
    """A tab. What is evaluated is evaluated outside the page's Content-Security-Policy."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.said: list[dict[str, Any]] = []  # messages of the console and the network
        self.answers: list[tuple[int, str]] = []  # the status and URL of each response

    def hear(self, method: str, event: dict[str, Any]) -> None:
        """Takes an event of this tab."""
        if method in ("Log.entryAdded", "Network.loadingFailed"):
            self.said.append(event)
        if method == "Network.responseReceived":
            self.answers.append((event["response"]["status"], event["response"]["url"]))
        if method == "Network.requestWillBeSent" and "redirectResponse" in event:
            answer = event["redirectResponse"]
            self.answers.append((answer["status"], answer["url"]))

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        """Waits until a page is loaded and no other is on its way."""
        for _ in range(int(SOON / 0.05)):
            await asyncio.sleep(0.05)
            with contextlib.suppress(Gone):
                state = await self.run("document.readyState + location.protocol")
                if state in {"completehttp:", "completehttps:", "completefile:"}:
                    return
        raise AssertionError(f"nothing loaded: {await self.run('document.body.innerText')}")

    async def shows(self, text: str) -> None:
        """Waits until `text` is on the page, whichever that is."""
        for _ in range(int(SOON / 0.05)):
            with contextlib.suppress(Gone):
                if text in await self.text():
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {text!r}: {await self.text()}")

    async def click(self, selector: str) -> None:
        """Taps where the element is, and waits for the next page."""
        box = await self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" window.before = 1; return [b.x + b.width / 2, b.y + b.height / 2] }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )
        for _ in range(int(SOON / 0.05)):
            with contextlib.suppress(Gone):
                if not await self.run("window.before"):
                    await self.loaded()
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{selector} led nowhere: {await self.text()}")

    async def press(self, key: str) -> None:
        """A key, Tab or Enter, down and up again."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    async def back(self) -> None:
        """Goes back, as by the back button."""
        history = await self.send("Page.getNavigationHistory")
        before = history["entries"][history["currentIndex"] - 1]["id"]
        await self.send("Page.navigateToHistoryEntry", entryId=before)

    async def text(self) -> str:
        return str(await self.run("document.body ? document.body.innerText : ''"))

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        got = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in got:
            raise AssertionError(got["exceptionDetails"])
        return got["result"].get("value")

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.browser.send(method, self.session, **parameters)


@asynccontextmanager
async def chromium(
    folder: Path, *names: str, within: Sequence[str] = (), arguments: Sequence[str] = ()
) -> AsyncIterator[Tab]:
    """A Chromium with its profile in `folder`; `names`, each `NAME HOST:PORT`, resolve so.

    `within` is the start of a command line that runs what follows elsewhere: in a namespace.
    """
    rules = ", ".join(f"MAP {name}" for name in names)
    (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
    # Chromium reads commands on 3 and answers on 4.
    pipes = f'exec "$0" "$@" 3<&{its_in} 4>&{its_out} {its_in}<&- {its_out}>&-'
    process = await asyncio.create_subprocess_exec(
        *(*within, "bash", "-c", pipes),
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-dev-shm-usage"),
        *("--disable-background-networking", f"--host-resolver-rules={rules}"),
        *(*arguments, "about:blank"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=(its_in, its_out),
    )
    os.close(its_in)
    os.close(its_out)
    reader, writer = await _streams(our_in, our_out)
    browser = Browser(reader, writer)
    try:
        yield await browser.tab()
        await browser.send("Browser.close")  # by itself, so that its profile is written
        await asyncio.wait_for(process.wait(), SOON)
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _streams(into: int, out: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LARGEST)
    reading = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: reading, os.fdopen(into, "rb", 0))
    transport, writing = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(out, "wb", 0)
    )
    return reader, asyncio.StreamWriter(transport, writing, None, loop)


async def axe(tab: Tab) -> list[str]:
    """What axe finds with its rules for WCAG 2.2 A and AA and its best practices."""
    await tab.run((files(axe_core_python) / "axe.min.js").read_text("utf-8") + ";0")
    found = await tab.run("axe.run(document).then(r => r.violations)")
    return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]
