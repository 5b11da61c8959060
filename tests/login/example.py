"""Runs the example of an external login server in a process."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from login.house import free_port, until

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "external-login-server"


@asynccontextmanager
async def example(api: Path, said: Path = Path(os.devnull)) -> AsyncIterator[int]:
    """The example, which asks the API at `api`; the port that it listens on.

    Its output goes to `said`.
    """
    port = free_port()
    with said.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(SCRIPT), str(api), "127.0.0.1", str(port), "swordfish"),
            stderr=stderr,
        )
    try:
        await until(lambda: _answers(port), "an answer of the example's")
        yield port
    finally:
        process.terminate()
        await process.wait()


async def _answers(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True
