"""`capport script`: prints the path of the script for `mitmdump -s`."""

from argparse import Namespace
from pathlib import Path

import capport
from capport.commands import CommandError


def script(arguments: Namespace) -> None:
    """Prints the path. The script is beside the package, in a checkout as well as installed."""
    path = Path(capport.__file__).resolve().parents[1] / "captive_portal.py"
    if not path.is_file():
        raise CommandError(f"{path} is missing; install capport again")
    print(path)
