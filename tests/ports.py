"""Ports of this machine that stay free until a test has somebody listen there."""

import os
import random
import socket
from pathlib import Path

_LOWEST = 10_000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens, each time another one.

    From below those that the kernel itself gives out (ip(7)): one of these, once let go, may go to
    whoever connects to anything next, or have a client that tries it connect to itself. Each worker
    of pytest-xdist takes every so many-th, so that two never take the same.
    """
    for _ in range(1000):
        port = random.randrange(_LOWEST + _WORKER, _below(), _WORKERS)
        if port not in _given and _is_free(host, port):
            _given.add(port)
            return port
    raise OSError(f"no free port of {host} from {_LOWEST} to {_below()}")


def _below() -> int:
    try:
        lowest = int(_EPHEMERAL.read_text().split()[0])
    except OSError:  # another system than Linux
        return 32768
    return lowest if lowest > _LOWEST + 1000 else 32768


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
