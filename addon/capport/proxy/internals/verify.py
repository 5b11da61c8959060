"""Stops the start where this mitmproxy is not as the portal was tested with.

`verify` runs before the portal is loaded, for a guard that nobody calls any more would not raise:
it would let everything through.

To add a version: run the tests with `scripts/test --mitmproxy VERSION tests/proxy`, mend what
fails, and write its digests with `.venv/mitmproxy-VERSION/bin/python -m
capport.proxy.internals.verify`. The oldest version in tested.json is pyproject.toml's lower bound.
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

from capport.proxy.internals.relied_on import HTTP, PRESENT, SOURCES

logger = logging.getLogger(__name__)

TESTED: Final = Path(__file__).with_name("tested.json")


class NotAsTested(Exception):
    """One line: the portal cannot run here, and why."""


@functools.cache  # a script that mitmproxy reloads finds what the portal has replaced already
def verify() -> None:
    """Raises NotAsTested; logs one line for a version that passes, but was not tested."""
    if not hasattr(socket, "AF_NETLINK"):
        raise NotAsTested(
            "the portal needs Linux: it asks the kernel who its clients are (netlink)"
        )
    check(importlib.import_module("mitmproxy.version").VERSION)


def check(version: str) -> None:
    """The same, for mitmproxy alone, as if it had this version."""
    tested = json.loads(TESTED.read_text())
    versions = tested["versions"]
    where = f"mitmproxy {version} is not as the portal was tested with ({', '.join(versions)})"
    if _number(version) < _number(versions[0]):
        raise NotAsTested(f"{where}: it is older")
    if problem := next(problems(tested["digests"]), None):
        raise NotAsTested(f"{where}: {problem}")
    if version not in versions:
        logger.warning(
            f"mitmproxy {version} is untested with the portal (tested: {', '.join(versions)});"
            " everything that the portal relies on is as it was"
        )


def problems(digests: dict[str, list[str]]) -> Iterator[str]:
    """What is not as tested: what the portal has it for, its name, and what is wrong with it."""
    for purpose, paths in SOURCES.items():
        for path in paths:
            if wrong := _wrong(path, digests.get(path, [])):
                yield f"{purpose}: {path} {wrong}"
    for purpose, paths in PRESENT.items():
        for path in paths:
            if _find(path) is None:
                yield f"{purpose}: {path} is missing"
    for purpose, behaves in BEHAVIOUR.items():
        try:
            behaves()
        except Exception as error:
            yield f"{purpose}: {behaves.__name__}: {type(error).__name__}: {error}"


def _wrong(path: str, digests: list[str]) -> str | None:
    function = _find(path)
    if function is None:
        return "is missing"
    try:
        found = digest(function)
    except (OSError, TypeError) as error:
        return f"cannot be checked: {error}"
    return None if found in digests else "is another function than the one that was tested"


def _find(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


def digest(function: Any) -> str:
    """Of a function's source, or a property's, less comments and empty lines. Raises OSError."""
    source = inspect.getsource(getattr(function, "fget", function))
    lines = (line.rstrip() for line in source.splitlines())
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def h11_looks_up_its_readers() -> None:
    """h11 finds the class that reads a chunked body in a table, where the portal puts its own."""
    import h11
    from h11 import _connection, _readers

    connection: Any = _connection
    bodies: Any = _readers.READERS[h11.SEND_BODY]
    assert connection.READERS is _readers.READERS
    assert issubclass(bodies["chunked"], _readers.ChunkedReader)


def h2_asks_its_decoder() -> None:
    """h2 decodes each header section by `decoder.decode`, and refuses frames that are too big."""
    from h2.config import H2Configuration
    from h2.exceptions import FrameTooLargeError

    connection = importlib.import_module(f"{HTTP}._http_h2").BufferedH2Connection(
        H2Configuration(client_side=False)
    )
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
    assert asked == [section], "a header section is decoded elsewhere"
    assert connection.data_to_send(), "it does not answer a client's settings"
    assert not any(connection.stream_buffers.values())
    try:
        connection.receive_data(bytes.fromhex("004001000000000001") + bytes(2**14 + 1))
    except FrameTooLargeError:
        return
    raise AssertionError("a frame of any size is read")


def asyncio_has_bounds() -> None:
    """Two attributes say how much asyncio reads at once, and how much it keeps."""
    import asyncio
    from asyncio import selector_events, trsock

    transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    reader: Any = asyncio.StreamReader
    assert "max_size" in transport._read_ready__data_received.__code__.co_names
    assert "_limit" in reader.feed_data.__code__.co_names
    assert trsock.TransportSocket.__slots__ == ("_sock",)


BEHAVIOUR: Final[dict[str, Callable[[], None]]] = {
    "the bounds of HTTP/1": h11_looks_up_its_readers,
    "the bounds of HTTP/2": h2_asks_its_decoder,
    "the bounds of what is kept": asyncio_has_bounds,
}


def add_version(version: str, file: Path = TESTED) -> None:
    """Writes the digests of the mitmproxy that is installed to `file`, as those of `version`."""
    tested = json.loads(file.read_text()) if file.exists() else {"versions": [], "digests": {}}
    versions = sorted({*tested["versions"], version}, key=_number)
    before = tested["digests"]
    digests = {
        path: sorted({*before.get(path, []), digest(pkgutil.resolve_name(path))})
        for path in sorted(path for paths in SOURCES.values() for path in paths)
    }
    written = json.dumps({"versions": versions, "digests": digests}, indent=1)
    file.write_text(f"{written}\n")


if __name__ == "__main__":
    add_version(importlib.import_module("mitmproxy.version").VERSION)
