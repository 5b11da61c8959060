"""A real Chromium, driven by its own protocol over the web socket that it opens on loopback."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

PATIENCE = 30.0


class Tab:
    """A tab. What is evaluated is evaluated outside the page's Content-Security-Policy."""

    def __init__(self, socket: WebSocketClientConnection, session: str) -> None:
        self._socket, self._session = socket, session
        self._numbers = count(1)
        self.said: list[dict[str, Any]] = []  # what the console and the network had to say

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        """Waits for a page that is there to stay."""
        for _ in range(int(PATIENCE / 0.05)):
            await asyncio.sleep(0.05)
            with contextlib.suppress(Gone):
                if await self.run("document.readyState + location.protocol") == "completehttp:":
                    return
        raise AssertionError(f"nothing loaded: {await self.run('document.body.innerText')}")

    async def click(self, selector: str) -> None:
        """As a finger would, where the element is; then waits for the page after."""
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
        for _ in range(int(PATIENCE / 0.05)):
            with contextlib.suppress(Gone):
                if not await self.run("window.before"):
                    await self.loaded()
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{selector} led nowhere: {await self.text()}")

    async def text(self) -> str:
        return str(await self.run("document.body.innerText"))

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        got = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in got:
            raise AssertionError(got["exceptionDetails"])
        return got["result"].get("value")

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        await self._socket.write_message(json.dumps(asked))
        while True:
            got = json.loads(await asyncio.wait_for(_read(self._socket), PATIENCE))
            if got.get("id") == number and got.get("sessionId") == self._session:
                if "error" in got:
                    raise Gone(got["error"])
                result: dict[str, Any] = got["result"]
                return result
            if got.get("method") in ("Log.entryAdded", "Network.loadingFailed"):
                self.said.append(got["params"])


class Gone(Exception):
    """The page went away while it was asked: it is on its way to the next."""


@asynccontextmanager
async def chromium(folder: Path, *names: str) -> AsyncIterator[Tab]:
    """A Chromium with its profile in `folder`; `names`, each `NAME HOST:PORT`, resolve so."""
    rules = ", ".join(f"MAP {name}" for name in names)
    process = await asyncio.create_subprocess_exec(
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "--disable-dev-shm-usage"),
        *("--disable-background-networking", f"--host-resolver-rules={rules}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port, path = await _port(folder / "DevToolsActivePort")
        socket = await websocket_connect(f"ws://127.0.0.1:{port}{path}", max_message_size=1 << 26)
        target = await _send(socket, "Target.createTarget", url="about:blank")
        attached = await _send(
            socket, "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        tab = Tab(socket, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        yield tab
        socket.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _send(
    socket: WebSocketClientConnection, method: str, **parameters: Any
) -> dict[str, Any]:
    await socket.write_message(json.dumps({"id": 0, "method": method, "params": parameters}))
    while True:
        got = json.loads(await asyncio.wait_for(_read(socket), PATIENCE))
        if got.get("id") == 0:
            result: dict[str, Any] = got["result"]
            return result


async def _read(socket: WebSocketClientConnection) -> str | bytes:
    message = await socket.read_message()
    assert message is not None, "Chromium has gone"
    return message


async def _port(file: Path) -> tuple[str, str]:
    for _ in range(int(PATIENCE / 0.05)):
        text = await asyncio.to_thread(_text, file)
        if "\n" in text:
            port, path = text.split("\n")[:2]
            return port, path
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium does not start")


def _text(file: Path) -> str:
    return file.read_text("ascii") if file.exists() else ""
