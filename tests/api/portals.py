"""A portal with the API, in a process: mitmdump, or `capport run`."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from confdir import confdir
from conftest import SOON
from login.house import free_port, until

BIN = Path(sys.executable).parent


CHECKOUT = Path(__file__).resolve().parents[2]


RUN = {
    "mitmdump": [str(BIN / "mitmdump"), "-s", str(CHECKOUT / "addon" / "captive_portal.py")],
    "capport run": [str(BIN / "capport"), "run"],
}


@asynccontextmanager
async def portal(
    folder: Path, way: str, policy: str, *options: str
) -> AsyncIterator[tuple[int, Path, list[str]]]:
    """An explicit proxy with a store in `folder`: its port, its socket, and what it says."""
    port, api = free_port(), folder / "api.sock"
    (folder / "policy.yaml").write_text(policy)
    given = [
        *(f"portal_policy={folder / 'policy.yaml'}", f"portal_sessions={folder / 'sessions.db'}"),
        *(f"confdir={confdir()}", *options),
    ]
    process = await asyncio.create_subprocess_exec(
        *(*RUN[way], "--listen-host", "127.0.0.1", "--listen-port", str(port)),
        *(part for one in given for part in ("--set", one)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
    )
    said: list[str] = []
    assert process.stdout is not None
    reading = asyncio.create_task(_read(process.stdout, said))
    try:
        await until(lambda: _is_up(api, port, process, said), f"{way}, listening")
        yield port, api, said
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SOON):
            assert await process.wait() == 0, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


async def _read(stream: asyncio.StreamReader, into: list[str]) -> None:
    while line := await stream.readline():
        into.append(line.decode("utf-8", "replace"))


async def _is_up(
    api: Path, port: int, process: asyncio.subprocess.Process, said: list[str]
) -> bool:
    """Whether both places accept a connection. Raises OSError if one does not."""
    assert process.returncode is None, said
    for _, writer in (
        await asyncio.open_connection("127.0.0.1", port),
        await asyncio.open_unix_connection(api),
    ):
        writer.close()
    return True
