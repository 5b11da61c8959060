"""Stops a process for a while, as if its machine slept."""

import os
import signal
from pathlib import Path

from lab.namespaces import wait_for


def suspend(pid: int) -> None:
    """Returns once it has stopped: SIGSTOP is asynchronous, and it may go on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: _is_stopped(pid))


def _is_stopped(pid: int) -> bool:
    """Whether each of its threads has stopped (proc(5))."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {(it / "stat").read_text().rpartition(") ")[2][0] for it in threads} == {"T"}
