"""Runs the `capport` command in this process, which has already done the slow imports."""

import contextlib
import io
from subprocess import CompletedProcess

from capport import cli


def capport(*arguments: str) -> CompletedProcess[str]:
    """Runs a command on this thread, in its network namespace, and keeps what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return CompletedProcess(["capport", *arguments], status, out.getvalue(), err.getvalue())
