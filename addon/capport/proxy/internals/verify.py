"""Stops the start if this mitmproxy differs from the versions that the portal was tested with.

`verify` runs before the portal is loaded. If a new mitmproxy did not call the guard, nothing would
raise, and every connection would be permitted.

tested.json lists the undocumented parts of mitmproxy, h11 and h2 that the portal relies on, grouped
by their purpose. The portal replaces such a function, calls it, or depends on what it calls and
which attributes it sets. So the digest of its source must be one of those that were tested. What
has no source in Python must exist under that name.

To add a version, run the tests with `scripts/test --mitmproxy VERSION tests/proxy`, repair what
fails, and write the digests with `.venv/mitmproxy-VERSION/bin/python -m
capport.proxy.internals.verify`. To add a function, write its name to tested.json with an empty
list, and run that command for each version. The oldest version is the lower bound in
pyproject.toml.
"""

import functools
import hashlib
import importlib
import inspect
import json
import logging
import pkgutil
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

TESTED: Final = Path(__file__).with_name("tested.json")
DEFAULT_ADDONS: Final = "the order of mitmproxy's own addons"
"""Its place in tested.json. To check it, all of them have to be imported."""


class NotAsTested(Exception):
    """The portal cannot run here. The message is one line that says why."""


@functools.cache  # when the script is reloaded, the portal has already replaced some functions
def verify(*, default_addons: bool = True) -> None:
    """Raises NotAsTested; logs a warning if a version passes but was not tested.

    Without `default_addons`, this process has a list of addons of its own.
    """
    if not hasattr(socket, "AF_NETLINK"):
        raise NotAsTested(
            "the portal needs Linux: it asks the kernel who its clients are (netlink)"
        )
    check(importlib.import_module("mitmproxy.version").VERSION, default_addons=default_addons)


def check(version: str, *, default_addons: bool = True) -> None:
    """Raises NotAsTested if the installed mitmproxy, called `version`, is not as it was tested."""
    tested = json.loads(TESTED.read_text())
    versions = tested["versions"]
    where = f"mitmproxy {version} is not as the portal was tested with ({', '.join(versions)})"
    if _number(version) < _number(versions[0]):
        raise NotAsTested(f"{where}: it is older")
    if not default_addons:
        del tested["relied_on"][DEFAULT_ADDONS]
    if problem := next(problems(tested["relied_on"]), None):
        raise NotAsTested(f"{where}: {problem}")
    if version not in versions:
        logger.warning(
            f"mitmproxy {version} is untested with the portal (tested: {', '.join(versions)});"
            " everything that the portal relies on is unchanged"
        )


def problems(relied_on: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """One line for each thing that is not as tested: its purpose, its name, what is wrong."""
    for purpose, things in relied_on.items():
        for path, digests in things.items():
            try:
                if digest(path) not in digests:
                    yield f"{purpose}: {path} is not what was tested"
            except (ImportError, AttributeError):
                yield f"{purpose}: {path} is missing"
            except OSError as error:
                yield f"{purpose}: {path} cannot be checked: {error}"
    for purpose, behaves in BEHAVIOUR.items():
        try:
            why = "" if behaves() else "no"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            yield f"{purpose}: {behaves.__name__}: {why}"


def digest(path: str) -> str:
    """The digest of a function's source without comments and empty lines.

    For anything but a Python function it is "here". Raises ImportError or AttributeError if `path`
    does not exist, OSError if its source does not.
    """
    thing = pkgutil.resolve_name(path)
    function = inspect.unwrap(getattr(thing, "fget", thing))
    if not inspect.isfunction(function):
        return "here"
    lines = (line.rstrip() for line in inspect.getsource(function).splitlines())
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def h11_looks_up_its_readers() -> bool:
    """Whether h11 finds its reader of chunked bodies in a table, where the portal puts its own."""
    import h11
    from h11 import _connection, _readers

    connection: Any = _connection
    bodies: Any = _readers.READERS[h11.SEND_BODY]
    in_use: bool = connection.READERS is _readers.READERS
    return in_use and issubclass(bodies["chunked"], _readers.ChunkedReader)


def h2_asks_its_decoder() -> bool:
    """Whether h2 decodes header sections by `decoder.decode`, and refuses frames too large."""
    from h2.config import H2Configuration
    from h2.exceptions import FrameTooLargeError
    from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

    connection: Any = BufferedH2Connection(H2Configuration(client_side=False))
    connection.local_settings.max_frame_size = connection.max_inbound_frame_size = 2**14
    connection.local_settings.acknowledge()
    decode, asked = connection.decoder.decode, []

    def decoded(data: bytes, raw: bool = False) -> Any:
        asked.append(data)
        return decode(data, raw)

    connection.decoder.decode = decoded
    section = bytes.fromhex("8286844101 61")  # GET http://a/
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    connection.receive_data(preface + bytes.fromhex("000006010500000001") + section)
    if asked != [section] or any(connection.stream_buffers.values()):
        return False
    try:
        connection.receive_data(bytes.fromhex("004001000000000001") + bytes(2**14 + 1))
    except FrameTooLargeError:
        return True
    return False


def asyncio_has_bounds() -> bool:
    """Whether two attributes bound how much asyncio reads at once and how much it keeps."""
    import asyncio
    from asyncio import selector_events

    transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    reader: Any = asyncio.StreamReader
    return (
        "max_size" in transport._read_ready__data_received.__code__.co_names
        and "_limit" in reader.feed_data.__code__.co_names
    )


BEHAVIOUR: Final[dict[str, Callable[[], bool]]] = {
    "the bounds of HTTP/1": h11_looks_up_its_readers,
    "the bounds of HTTP/2": h2_asks_its_decoder,
    "the bounds of what is kept": asyncio_has_bounds,
}


def add_version(version: str, file: Path = TESTED) -> None:
    """Writes to `file` that the installed mitmproxy, called `version`, was tested."""
    tested = json.loads(file.read_text())
    tested["versions"] = sorted({*tested["versions"], version}, key=_number)
    for things in tested["relied_on"].values():
        for path, digests in things.items():
            things[path] = sorted({*digests, digest(path)})
    file.write_text(f"{json.dumps(tested, indent=1)}\n")


if __name__ == "__main__":
    add_version(importlib.import_module("mitmproxy.version").VERSION)
