"""Watches the policy file and each file that it includes; the last good policy stays in force.

The watcher looks at the files twice a second instead of using inotify(7). So it also notices a
file that an editor replaces, a link that changes its target, a file that comes back, and changes on
a network file system. A look costs about 20 us for the few files of a policy.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from capport.core.policy import Policy
from capport.lasting import lasting_on_thread
from capport.linux.file_state import state_of
from capport.policy import policy_file
from capport.policy.policy_file import PolicyError, Problem

INTERVAL = 0.5
"""Seconds between two looks."""

PATIENCE = 10
"""A file that still changes after this many looks is read anyway."""

type _States = dict[str, tuple[int, ...]]
type _Outcome = Policy | PolicyError

logger = logging.getLogger(__name__)


class PolicyWatcher:
    """Calls `on_policy` with each new policy, and `on_error` with each new error.

    Both are called on the event loop; an exception from them is logged, and the watching goes on.
    An error that stays the same is passed on once. The files are read on a thread, so that a
    clients file with a million lines does not block the loop. A file is read when it looks the same
    twice in a row, because a policy that is only half written may be valid too.
    """

    def __init__(
        self,
        path: Path,
        on_policy: Callable[[Policy], None],
        on_error: Callable[[PolicyError], None],
        interval: float = INTERVAL,
    ) -> None:
        self._path = path
        self._on_policy = on_policy
        self._on_error = on_error
        self._interval = interval
        self._states_read: _States = {}
        self._last_error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> Policy:
        """Reads the policy as it is now, before `start`. Raises PolicyError.

        A change between this call and `start` is noticed after `start`.
        """
        outcome = self._read()
        if isinstance(outcome, PolicyError):
            self._last_error = str(outcome)
            raise outcome
        return outcome

    def start(self) -> None:
        """Starts to watch, and calls the functions on the running event loop. Call it only once."""
        loop = asyncio.get_running_loop()
        if self._thread is not None:
            raise RuntimeError("the watcher is started already")
        look = ("The look at the policy file", partial(self._watch, loop), self._stop)
        self._thread = threading.Thread(
            target=lasting_on_thread, args=look, name="policy", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the watching: neither function is called after this."""
        self._stop.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        before, changing = self._states_read, 0
        while not self._stop.is_set():
            now = self._states()
            changing = changing + 1 if now != before else 0
            hasty = changing >= PATIENCE
            if now != self._states_read and (changing == 0 or hasty):
                outcome = self._read()
                changing, now = 0, self._states()
                # A file that changed while it was read is read again; this result is dropped.
                if now == self._states_read or hasty:
                    self._report(loop, outcome)
            before = now
            self._stop.wait(self._interval)

    def _states(self) -> _States:
        """The current state of each file that was read the last time."""
        return {file: state_of(file) for file in self._states_read or (str(self._path),)}

    def _read(self) -> _Outcome:
        """Reads the policy, and keeps the state that each file had before it was opened."""
        states: _States = {str(self._path): state_of(str(self._path))}
        outcome: _Outcome
        try:
            outcome = policy_file.load(
                self._path, lambda file: states.setdefault(file, state_of(file))
            )
        except PolicyError as error:
            outcome = error
        except Exception as fault:
            # The edge of the thread: an error in our code must not silently end the watching and
            # every later reload. Closed means that the last good policy stays.
            logger.exception(
                "The policy file could not be read; the last good policy stays in force"
            )
            message = f"could not be read: {type(fault).__name__}: {fault}"
            outcome = PolicyError([Problem(str(self._path), 0, 0, message)])
        self._states_read = states
        return outcome

    def _report(self, loop: asyncio.AbstractEventLoop, outcome: _Outcome) -> None:
        reason = str(outcome) if isinstance(outcome, PolicyError) else None
        if reason is not None and reason == self._last_error:
            return
        self._last_error = reason
        try:
            loop.call_soon_threadsafe(self._deliver, outcome)
        except RuntimeError:  # the loop is closed, so there is nobody to report to
            self._stop.set()

    def _deliver(self, outcome: _Outcome) -> None:
        if self._stop.is_set():
            return
        try:
            if isinstance(outcome, PolicyError):
                self._on_error(outcome)
            else:
                self._on_policy(outcome)
        except Exception:
            # The edge again: the function may fail on this policy and work with the next.
            logger.exception("The policy was read, but could not be put in force")
