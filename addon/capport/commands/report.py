"""`capport report`: what the portal does to clients (RFC 6585 section 7.4 and appendix B)."""

from argparse import Namespace

from capport.commands import CommandError


def report(arguments: Namespace) -> None:
    """Raises CommandError."""
    raise CommandError("capport report: not built yet")
