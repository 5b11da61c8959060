"""Finds ports of this machine that stay free until a test listens on them."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

_LOWEST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CLAIMS = Path(tempfile.gettempdir()) / f"capport-test-ports-{os.getuid()}"
_claims = os.open(_CLAIMS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1, for TCP and UDP, that no test on this machine has been given yet.

    It is below the kernel's ephemeral ports (ip(7)). The kernel may give one of those to the next
    socket that connects, and a client that tries one may be connected to itself.
    """
    for _ in range(1000):
        port = random.randrange(_LOWEST, _below())
        if port not in _given and _is_claimed(port) and _is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no free port from {_LOWEST} to {_below()}")


def _below() -> int:
    try:
        lowest = int(_EPHEMERAL.read_text().split()[0])
    except OSError:  # another system than Linux
        return 32768
    return lowest if lowest > _LOWEST + 1000 else 32768


def _is_claimed(port: int) -> bool:
    """Whether this process holds the lock on the port's byte: other workers and runs then do not.

    The lock ends with the process.
    """
    try:
        fcntl.lockf(_claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
