"""`capport script`: the path that mitmproxy takes."""

from argparse import Namespace
from pathlib import Path

import capport
from capport.commands import CommandError


def script(arguments: Namespace) -> None:
    """Prints it. The script lies beside the package, in a checkout as where it is installed."""
    path = Path(capport.__file__).resolve().parents[1] / "captive_portal.py"
    if not path.is_file():
        raise CommandError(f"{path}: not there; install capport again")
    print(path)
