"""A network namespace whose only way out is a portal, so that a program in it needs no settings.

A command in it has one interface, which leads nowhere. The kernel redirects its TCP to the proxy,
and its DNS to a resolver. Both listen in the namespace, but belong to the portal's process, whose
own connections leave as always. So the machine's own network does not change, and the namespace is
gone when the last process in it has ended.
"""

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, Self

from capport.linux.libnftables import Nftables
from capport.linux.parent import end_with_the_parent

CLIENT: Final = IPv4Address("192.0.2.2")
PORTAL: Final = IPv4Address("192.0.2.1")
"""The command's address, and the one of its sign-in page and its resolver (RFC 5737)."""
LIE: Final = IPv4Address("192.0.2.3")
"""The address of every name, if the portal lies about names."""
ORIGIN: Final = IPv4Address("198.51.100.1")
"""The address of every name, if the portal is offline."""

GRACE: Final = 3.0  # seconds from TERM to KILL
_AGAIN = 0.02  # seconds between two looks whether programs have ended
_NETWORK = Path("/proc/thread-self/ns/net")
_SET_UP = (
    "mount --make-rprivate /",  # else the mounts below reach the machine's own
    "ip link set lo up",
    # What is sent to `void` is for another device, by its MAC, so it vanishes.
    "ip link add eth0 type veth peer name void",
    f"ip address add {CLIENT}/24 dev eth0",
    "ip link set eth0 up",
    "ip link set void up",
    f"ip neighbour add {PORTAL} lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    f"ip route add default via {PORTAL}",
)
_HOSTS = re.compile("^hosts:.*$", re.MULTILINE)  # nsswitch.conf(5)
_TRUSTED = (  # where distributions keep the certificates that programs trust
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


class Namespace:
    """A network of one command, for the length of a `with` block. Raises OSError without root.

    A thread stays in the namespace, and starts the programs there. A mount namespace gives them
    their own resolv.conf.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "namespace")
        self.descriptor = -1

    def __enter__(self) -> Self:
        try:
            self.descriptor = self._thread.submit(self._set_up).result()
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown()
        os.close(self.descriptor)

    def trust(self, bundle: Path) -> None:
        """Makes programs in here trust the certificates in `bundle`, and no others."""
        for place in map(Path, _TRUSTED):
            if place.is_file():
                self._thread.submit(_bind, bundle, place).result()

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program in here."""
        return self._thread.submit(lambda: subprocess.Popen(argv, **options)).result()

    def _set_up(self) -> int:
        os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
        for command in _SET_UP:
            _run(command.split())
        _replace(Path("/etc/resolv.conf"), lambda before: f"nameserver {PORTAL}\n")
        _replace(Path("/etc/nsswitch.conf"), lambda before: _HOSTS.sub("hosts: files dns", before))
        kernel = Nftables()  # without libnftables, this fails before the portal starts
        kernel.run(_rules(None))
        kernel.close()
        return os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)


class Entrance:
    """What the portal's process has in a namespace: the resolver's socket, the kernel's rules."""

    def __init__(self, descriptor: int) -> None:
        self._home = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        self._inside = descriptor
        self.enter()
        try:
            self.resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.resolver.setblocking(False)
            self.resolver.bind(("127.0.0.1", 53))
            self._kernel = Nftables()
        finally:
            self.leave()

    def enter(self) -> None:
        """Makes the sockets that this thread opens from now on belong to the namespace."""
        os.setns(self._inside, os.CLONE_NEWNET)

    def leave(self) -> None:
        """Makes them belong to the machine's own network again."""
        os.setns(self._home, os.CLONE_NEWNET)

    def redirect(self, port: int, *, tcp: bool) -> None:
        """Redirects DNS to the resolver, and if `tcp` is set all TCP to the proxy's port.

        What is not redirected goes out by an interface that leads nowhere, and vanishes.
        """
        self._kernel.run(_rules(port if tcp else None))


def end_all(namespace: int) -> None:
    """Ends every program that still runs in a network: by TERM, and after `GRACE` by KILL."""
    until = time.monotonic() + GRACE
    number = signal.SIGTERM
    while pids := _pids(namespace):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > until:
            number = signal.SIGKILL
        time.sleep(_AGAIN)


def _pids(namespace: int) -> list[int]:
    there, found = os.fstat(namespace), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if os.path.samestat((process / "ns" / "net").stat(), there):
                found.append(int(process.name))
    return found


def start_outside(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a program in the machine's own network. It ends if this process is killed."""
    return subprocess.Popen(argv, preexec_fn=end_with_the_parent, **options)


def _rules(port: int | None) -> str:
    """Redirects DNS to the resolver, and TCP to `port`."""
    to_proxy = f"meta l4proto tcp redirect to :{port}" if port else ""
    return f"""table ip capport_behind
        delete table ip capport_behind
        table ip capport_behind {{
            chain output {{
                type nat hook output priority -100; policy accept;
                oifname lo accept
                udp dport 53 redirect to :53
                {to_proxy}
            }}
        }}"""


def _replace(place: Path, change: Callable[[str], str]) -> None:
    """Changes the content of a file, if it exists, in this mount namespace only."""
    if place.exists():
        with tempfile.NamedTemporaryFile("w") as file:  # the mount keeps it, without its name
            file.write(change(place.read_text()))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            _bind(Path(file.name), place)


def _bind(source: Path, place: Path) -> None:
    _run(["mount", "--bind", str(source), str(place)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
