"""A real mitmdump, mitmweb or mitmproxy, or `capport run`, in a process, and a client of it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from confdir import confdir
from conftest import SOON

SCRIPT = Path(__file__).resolve().parents[2] / "addon" / "captive_portal.py"
LOGIN = "https://login.example.net/"
UP = re.compile(r"listening at (?:http://)?(?:\S*?):(\d+)\.")
BAD = ("Traceback", "has crashed", "Addon error", "Unhandled error", "never awaited")


@dataclass
class Process:
    """A process, and its output so far."""

    process: asyncio.subprocess.Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    said: asyncio.Event = field(default_factory=asyncio.Event)
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    mute: int = 0

    @property
    def log(self) -> str:
        return "".join(self.out + self.err)

    @property
    def port(self) -> int:
        found = UP.search(self.log)
        assert found, self.log
        return int(found.group(1))

    async def says(self, text: str, times: int = 1, timeout: float = SOON) -> None:
        """Waits until its output has `text`, that many times."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.log.count(text) < times and not self.has_said_all:
                    self.said.clear()
                    await self.said.wait()
        assert self.log.count(text) >= times, f"never said {text!r}:\n{self.log}"

    @property
    def has_said_all(self) -> bool:
        """Whether its output is complete: it has ended, and all of it has been read."""
        return self.mute == len(self.readers)

    async def ended(self, timeout: float = SOON) -> int:
        """Its exit status, once its output is complete."""
        async with asyncio.timeout(timeout):
            status = await self.process.wait()
            await asyncio.gather(*self.readers)
        return status

    async def ask(self, data: bytes, timeout: float = SOON) -> bytes:
        """What comes back for `data`, until the other end closes or has sent one whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        received = b""
        try:
            writer.write(data)
            async with asyncio.timeout(timeout):
                while b"\r\n\r\n" not in received and (more := await reader.read(65536)):
                    received += more
        except ConnectionError:
            pass
        finally:
            writer.close()
        return received

    async def get(self, port: int, host: str = "127.0.0.1") -> int:
        """The status of a GET for `host:port`; 0 for a connection that is closed without one."""
        target = f"{host}:{port}"
        answer = await self.ask(
            f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode()
        )
        return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.") else 0

    async def _read(self, stream: asyncio.StreamReader, into: list[str]) -> None:
        while line := await stream.readline():
            into.append(line.decode("utf-8", "replace"))
            self.said.set()
        self.mute += 1
        self.said.set()


def memory(it: Process, line: str = "VmRSS") -> int:
    """Bytes, as the kernel counts them."""
    return int(status(it, line).split()[1]) * 1024


def status(it: Process, line: str) -> str:
    """The line with that name in /proc/PID/status."""
    lines = Path(f"/proc/{it.process.pid}/status").read_text().splitlines()
    return next(text for text in lines if text.startswith(line))


def policy(folder: Path, text: str = "", name: str = "policy.yaml") -> Path:
    """A policy file in `folder`."""
    file = folder / name
    file.write_text(f"login_url: {LOGIN}\n{text}")
    return file


@contextlib.asynccontextmanager
async def started(
    folder: Path,
    *arguments: str,
    tool: str = "mitmdump",
    script: Path | None = SCRIPT,
    store: str | None = ":memory:",
    env: dict[str, str] | None = None,
    listening: bool = True,
    bad: tuple[str, ...] = BAD,
) -> AsyncIterator[Process]:
    """`tool` with the portal, its own HOME, and a port of its own. Ended whatever happens.

    At the end nothing in `bad` may stand in what it said.
    """
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    program, *subcommand = tool.split()
    command = [
        str(Path(sys.executable).parent / program),
        *subcommand,
        *(("--set", f"confdir={confdir()}") if "confdir=" not in str(arguments) else ()),
        *("--listen-host", "127.0.0.1", "--listen-port", "0"),
        *(("-s", str(script)) if script else ()),
        *(("--set", f"portal_sessions={store}") if store else ()),
        *arguments,
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(folder), "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=folder,
    )
    assert process.stdout
    assert process.stderr
    it = Process(process)
    it.readers = [
        asyncio.create_task(it._read(process.stdout, it.out)),
        asyncio.create_task(it._read(process.stderr, it.err)),
    ]
    try:
        if listening:
            await it.says("listening at")
        yield it
        for text in bad:
            assert text not in it.log, it.log
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*it.readers)
