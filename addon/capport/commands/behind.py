"""`capport behind`: runs a command behind a portal of each kind, and prints the findings."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from capport.commands import CommandError
from capport.commands.report import FOUND
from capport.report.findings import Severity
from capport.report.summary import document
from capport.testing import network
from capport.testing.kinds import PortalKind
from capport.testing.portal import Portal, PortalError
from capport.testing.side_by_side import Run, lines_of

TIMED_OUT, CANNOT_RUN, NOT_FOUND = 124, 126, 127  # as timeout(1) and shells have them
EACH = 60.0  # seconds for the command behind each of several kinds
TURN = 0.2  # seconds between two looks whether a signal has come

type EndIfAsked = Callable[[], None]


def behind(arguments: Namespace) -> int:
    """Runs the command behind each kind, and returns the exit status.

    With one kind it is the command's own exit status, with several it is 0. With `--fail-on` it is
    3 if there are findings.
    """
    try:
        runs = list(_runs(arguments))
    except PortalError as error:
        raise CommandError(f"the portal failed: {error}") from None
    if arguments.json:
        print(json.dumps({run.kind.name: _as_json(run) for run in runs}, indent=2))
    else:
        print("\n".join(lines_of(runs)))
    level = arguments.fail_on and Severity(arguments.fail_on)
    if level and any(run.report and run.report.at_least(level) for run in runs):
        return FOUND
    return runs[0].status if len(runs) == 1 and runs[0].status is not None else 0


def _runs(arguments: Namespace) -> Iterator[Run]:
    """Runs the command behind one kind after the other."""
    kinds: Sequence[PortalKind] = arguments.kinds
    limit = arguments.timeout or (EACH if len(kinds) > 1 else None)
    with ExitStack() as stack:
        end_if_asked = stack.enter_context(_ending_on_signals())
        place = _Place(stack, arguments)
        for kind in kinds:
            if kind.needs and place.why_no_network:
                yield Run(kind=kind, skipped=f"{kind.needs}: {place.why_no_network}")
                continue
            if len(kinds) > 1:
                print(f"--- {kind.name}: {kind.about}", file=sys.stderr)
            place.portal.reset(kind=kind.name)
            with _granting(place.portal, arguments.grant_after):
                status = place.run(arguments.command, limit, end_if_asked)
            yield Run(kind=kind, status=status, report=place.portal.report)
            if status == 128 + signal.SIGINT:
                return


class _Place:
    """Where the command runs: a portal, and a network namespace if there can be one."""

    def __init__(self, stack: ExitStack, arguments: Namespace) -> None:
        self._output = sys.stderr if arguments.json else None
        self.why_no_network: str | None = None
        self._inside: network.Namespace | None = None
        if arguments.proxy:
            self.why_no_network = "--proxy"
        elif os.geteuid():
            self.why_no_network = "it needs root"
        else:
            try:
                self._inside = stack.enter_context(network.Namespace())
            except OSError as error:
                self.why_no_network = str(error)
                print(
                    f"no network namespace, so proxy variables are used: {error}", file=sys.stderr
                )
        descriptor = self._inside.descriptor if self._inside else None
        self.portal = stack.enter_context(Portal(offline=arguments.offline, namespace=descriptor))
        self._variables = self.portal.environment
        if self._inside:
            self._variables = self.portal.trusting if arguments.offline else {}
            if arguments.offline:
                self._inside.trust(self.portal.ca_file)

    def run(self, command: Sequence[str], limit: float | None, end_if_asked: EndIfAsked) -> int:
        """Runs the command, and returns its exit status as a shell has it."""
        start = self._inside.start if self._inside else network.start_outside
        end_if_asked()
        try:
            process = start(command, env={**os.environ, **self._variables}, stdout=self._output)
        except FileNotFoundError:
            print(f"{command[0]}: no such command", file=sys.stderr)
            return NOT_FOUND
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            return CANNOT_RUN
        try:
            status = _status(process, limit, end_if_asked)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            _end(process)
            if self._inside:  # processes that it left must not run behind the next kind
                network.end_all(self._inside.descriptor)
        return status if status >= 0 else 128 - status


def _status(process: subprocess.Popen[bytes], limit: float | None, end_if_asked: EndIfAsked) -> int:
    until = math.inf if limit is None else time.monotonic() + limit
    while True:
        end_if_asked()
        left = until - time.monotonic()
        try:
            return process.wait(min(left, TURN))
        except subprocess.TimeoutExpired:
            if left <= TURN:
                raise


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(network.GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _granting(portal: Portal, after: float | None) -> Iterator[None]:
    """Grants a session `after` so many seconds, if the command still runs."""
    if after is None:
        yield
        return
    timer = threading.Timer(after, portal.grant)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def _ending_on_signals() -> Iterator[EndIfAsked]:
    """Yields a function that raises SystemExit if this process has got SIGTERM or SIGHUP.

    A handler that raises could do so anywhere, also between the start of a process and our
    knowledge of it, and leave that process or its files. Ctrl-C only ends the command.
    """
    asked: list[int] = []

    def end_if_asked() -> None:
        if asked:
            sys.exit(128 + asked[0])

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield end_if_asked
        end_if_asked()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_json(run: Run) -> dict[str, object]:
    if run.report is None:
        return {"skipped": run.skipped}
    return {"status": run.status, "report": document(run.report)}
