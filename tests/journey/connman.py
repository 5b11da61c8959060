"""A real ConnMan in a client's namespace, and its own connmanctl as the agent it asks.

ConnMan takes the namespace's interface over and asks for a lease of its own.
"""

import os
import pty
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from journey import bus
from lab.namespaces import Namespace, end, wait_for

CHECK = "ipv4.connman.net"

# Where it would write files of the machine, it finds a tmpfs in its own mount namespace. It cannot
# reach the host name and the clock, which it would set too.
SCRIPT = f"""\
set -eu
hostname client
mount -t tmpfs tmpfs /run
mkdir /run/connman
mount -t tmpfs tmpfs /var/lib
{bus.START}
while [ ! -S bus ]; do sleep 0.05; done
exec setpriv --bounding-set -sys_time,-sys_boot,-sys_module \
connmand --nodaemon --config=connman.conf --device=eth0
"""

# It does not connect by itself: it asks for a browser once, and its agent must be there by then.
CONFIGURATION = """\
[General]
DefaultAutoConnectTechnologies=wifi
DefaultFavoriteTechnologies=wifi
AllowHostnameUpdates=false
AllowDomainnameUpdates=false
"""


class ConnMan:
    """A running ConnMan, with an agent that reports what it is asked."""

    def __init__(self, within: Namespace, environment: Mapping[str, str], service: str) -> None:
        self._within, self._environment = within, environment
        self._service = service
        self._said = b""
        self._terminal, theirs = pty.openpty()
        os.set_blocking(self._terminal, False)
        self._agent = subprocess.Popen(
            within.argv("connmanctl"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(theirs)
        self.type("agent on")
        self.hears("Agent registered")

    def state(self) -> str:
        """The state of the service: `ready` has an address, `online` has had its check answered."""
        found = re.search(r"^ *State = (\w+)$", self.ctl("services", self._service), re.MULTILINE)
        return found.group(1) if found else "unknown"

    def connect(self) -> None:
        """Gets a lease, then checks what kind of network it is in."""
        said = self.ctl("connect", self._service)
        assert "Connected" in said, said

    def ctl(self, *arguments: str) -> str:
        """What a connmanctl says."""
        return _ctl(self._within, self._environment, *arguments)

    def type(self, line: str) -> None:
        """Answers what the agent asks."""
        os.write(self._terminal, f"{line}\n".encode())

    def hears(self, text: str, seconds: float = 60) -> str:
        """All that the agent has said since it was last asked, once that holds `text`."""

        def said() -> bool:
            with suppress(BlockingIOError):
                self._said += os.read(self._terminal, 65536)
            return text.encode() in self._said

        try:
            wait_for(said, seconds)
        except TimeoutError as error:
            raise AssertionError(f"never {text!r} in {self._said!r}") from error
        heard, self._said = self._said.decode("utf-8", "replace"), b""
        return heard

    def close(self) -> None:
        end(self._agent)
        os.close(self._terminal)


def _ctl(within: Namespace, environment: Mapping[str, str], *arguments: str) -> str:
    done = within.run("connmanctl", *arguments, env=environment)
    return done.stdout + done.stderr


@contextmanager
def connman(folder: Path, within: Namespace, service: str) -> Iterator[ConnMan]:
    """A ConnMan in a namespace, with its files in `folder`, once it knows `service`."""
    environment = bus.configure(folder)
    (folder / "connman.conf").write_text(CONFIGURATION)
    script = f"cd '{folder}'\n{SCRIPT}"
    with (folder / "log").open("wb") as log:
        process = within.start(
            *("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script),
            log=log,
            env=environment,
        )
    it = None
    try:
        try:
            wait_for(lambda: "State = " in _ctl(within, environment, "state"))
            it = ConnMan(within, environment, service)
            wait_for(lambda: it.state() != "unknown")
        except (TimeoutError, AssertionError) as error:
            said = (folder / "log").read_text()[-3000:]
            raise OSError(f"ConnMan: {error}\n{it and it.ctl('services')}\n{said}") from error
        yield it
    finally:
        if it:
            it.close()
        end(process)
