"""A message bus for one client, so that its services do not use the machine's."""

import os
from pathlib import Path

CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={bus}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""

START = "dbus-daemon --config-file=bus.conf --nofork --nopidfile &"
"""A line of shell that a script in the folder of `configure` needs."""


def configure(folder: Path) -> dict[str, str]:
    """Writes bus.conf in `folder`; the environment in which that bus is the system's."""
    (folder / "bus.conf").write_text(CONFIGURATION.format(bus=folder / "bus"))
    return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder / 'bus'}"}
