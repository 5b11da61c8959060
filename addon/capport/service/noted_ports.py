"""Notes the proxy's ports beside the session store, so that other processes know them."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from capport.linux import safe_files
from capport.stores.opening import store_path

_MOST = 4096  # bytes of the file that are read


class NotedPorts(Collection[int]):
    """The ports of the proxy that has, or last had, this session store; empty if none is noted.

    Nobody may reach the proxy by way of itself, so `capport explain` and `capport login` need them.
    The file is read at each question. Its first line has the ports.
    """

    def __init__(self, store: str) -> None:
        """Takes the URL of the store. Raises StoreError."""
        self._store = store_path(store)
        self._file = self._store and Path(f"{self._store}-ports")

    def __contains__(self, port: object) -> bool:
        return port in self._read()

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def note(self, ports: Collection[int]) -> None:
        """Writes the ports down. Raises OSError. It waits for the disk."""
        if self._store is None or self._file is None:
            return
        line = f"{' '.join(map(str, sorted(ports)))}\n".encode()
        with safe_files.closing(safe_files.open_or_make(self._file, self._store)) as file:
            os.pwrite(file, line, 0)
            os.ftruncate(file, len(line))

    def _read(self) -> frozenset[int]:
        line = b""
        if self._file is not None:
            with suppress(OSError), safe_files.closing(safe_files.open_to_read(self._file)) as file:
                line = os.pread(file, _MOST, 0).partition(b"\n")[0]
        return frozenset(int(port) for port in line.split() if port.isdigit())
