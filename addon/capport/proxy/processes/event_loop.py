"""The event loop of `capport run`: uvloop, if it is installed and works here, else asyncio's own.

uvloop needs less processor time for each connection and request. mitmproxy makes its tasks eager,
and some versions of uvloop do not support that on some Pythons: 0.23.0 raises on CPython 3.13.0. So
`choose` tries it first.
"""

import asyncio
from collections.abc import Callable
from importlib.metadata import version

type LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def choose() -> tuple[LoopFactory, str]:
    """The event loop to use, and its name for the log."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop, "asyncio (pip install 'capport[fast]' brings a faster one)"
    name = f"uvloop {version('uvloop')}"
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_make_an_eager_task())
    except Exception as error:  # an uvloop that does not fit this Python may raise anything
        return asyncio.new_event_loop, f"asyncio ({name} does not work here: {error})"
    return uvloop.new_event_loop, name


async def _make_an_eager_task() -> None:
    loop, pause = asyncio.get_running_loop(), asyncio.sleep(0)
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        await loop.create_task(pause)
    finally:
        pause.close()
        loop.set_task_factory(None)  # closing the loop makes tasks too
