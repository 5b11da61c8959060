"""A real NetworkManager in a client's namespace, with a message bus and a state of its own."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from journey import bus
from lab.namespaces import Namespace, end, wait_for

CHECK = "network-test.debian.org"

# In its own mount namespace, a tmpfs is where it would write files of the machine. A read-only /sys
# tells it that there is no udev to wait for, as in a container.
SCRIPT = f"""\
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/NetworkManager
mount -o remount,bind,ro /sys
{bus.START}
exec NetworkManager --no-daemon --config=nm.conf --config-dir=none --system-config-dir=none \
--intern-config=intern.conf --state-file=state --pid-file=pid
"""

# Debian's check, by hand alone.
CONFIGURATION = f"""\
[main]
plugins=keyfile
auth-polkit=false
dns=none
rc-manager=unmanaged
no-auto-default=*
[connectivity]
uri=http://{CHECK}/nm
interval=3600
"""


class NetworkManager:
    """It finds the namespace's interfaces configured, and leaves them as they are."""

    def __init__(self, within: Namespace, environment: Mapping[str, str]) -> None:
        self._within, self._environment = within, environment

    def connectivity(self) -> str:
        """Checks now: `full`, `portal`, `limited` or `none`; `unknown` before it is up."""
        done = self.nmcli("networking", "connectivity", "check")
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    def nmcli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._within.run("nmcli", *arguments, env=self._environment)


@contextmanager
def network_manager(folder: Path, within: Namespace) -> Iterator[NetworkManager]:
    """A NetworkManager in a namespace, with its files in `folder`."""
    environment = bus.configure(folder)
    (folder / "nm.conf").write_text(CONFIGURATION)
    script = f"cd '{folder}'\n{SCRIPT}"
    with (folder / "log").open("wb") as log:
        process = within.start(
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", script),
            log=log,
            env=environment,
        )
    it = NetworkManager(within, environment)
    try:
        try:
            wait_for(lambda: "eth0" in it.nmcli("-t", "connection", "show").stdout)
        except TimeoutError as error:
            raise OSError(f"NetworkManager: {(folder / 'log').read_text()[-3000:]}") from error
        yield it
    finally:
        end(process)
