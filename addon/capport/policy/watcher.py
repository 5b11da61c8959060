"""Watches the policy file, and each file that it includes; the last good policy stays.

It looks at the files twice a second rather than have the kernel tell it: that sees a file that an
editor replaces, a link that is pointed elsewhere, a file that comes back, and a network file system
alike, and costs some 20 us each time for the handful of files there are.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from capport.core.policy import Policy
from capport.linux.file_state import state_of
from capport.policy import policy_file
from capport.policy.policy_file import PolicyError, Problem

INTERVAL = 0.5
"""Seconds between two looks."""

_PATIENCE = 10
"""So many looks a file may go on changing before it is read all the same."""

type _Looks = dict[str, tuple[int, ...]]
type _Outcome = Policy | PolicyError

logger = logging.getLogger(__name__)


class PolicyWatcher:
    """Calls `on_policy` with each new policy, `on_error` once with each new reason there is none.

    Both are called on the event loop; what they raise is logged and ends nothing. The files are
    read on a thread, so that a clients file with a million lines does not hold the loop up. A file
    is read when it looks the same twice in a row, since half of a policy may be a policy too.
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
        self._read_as: _Looks = {}
        self._told: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> Policy:
        """The policy as it is now, for the start. Raises PolicyError.

        Whatever changes after this call is noticed once `start` is called.
        """
        outcome = self._attempt()
        if isinstance(outcome, PolicyError):
            self._told = str(outcome)
            raise outcome
        return outcome

    def start(self) -> None:
        """Begins to watch, on behalf of the running event loop. Once only."""
        loop = asyncio.get_running_loop()
        if self._thread is not None:
            raise RuntimeError("the watcher was started before")
        self._thread = threading.Thread(
            target=self._watch, args=(loop,), name="policy", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends it: neither function is called from here on."""
        self._stop.set()

    async def stopped(self) -> None:
        """Stops, and waits until the thread has ended."""
        self.stop()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        before = self._read_as
        changing = 0
        while not self._stop.is_set():
            now = self._look()
            changing = changing + 1 if now != before else 0
            hasty = changing >= _PATIENCE
            if now != self._read_as and (changing == 0 or hasty):
                outcome = self._attempt()
                changing, now = 0, self._look()
                # What changed while it was read is read again, and this reading goes unused.
                if now == self._read_as or hasty:
                    self._tell(loop, outcome)
            before = now
            self._stop.wait(self._interval)

    def _look(self) -> _Looks:
        """How the files look now that were read the last time."""
        return {file: state_of(file) for file in self._read_as or (str(self._path),)}

    def _attempt(self) -> _Outcome:
        """Reads the policy, and notes how each file looked before it was opened."""
        looks: _Looks = {str(self._path): state_of(str(self._path))}
        outcome: _Outcome
        try:
            outcome = policy_file.load(
                self._path, lambda file: looks.setdefault(file, state_of(file))
            )
        except PolicyError as error:
            outcome = error
        except Exception as fault:
            # The edge of the thread: no fault of ours may end the watching, and with it every
            # later reload, in silence. Closed means that the last good policy stays.
            logger.exception("The policy file could not be read; the last good policy stays")
            message = f"could not be read: {type(fault).__name__}: {fault}"
            outcome = PolicyError([Problem(str(self._path), 0, 0, message)])
        self._read_as = looks
        return outcome

    def _tell(self, loop: asyncio.AbstractEventLoop, outcome: _Outcome) -> None:
        reason = str(outcome) if isinstance(outcome, PolicyError) else None
        if reason is not None and reason == self._told:
            return
        self._told = reason
        try:
            loop.call_soon_threadsafe(self._deliver, outcome)
        except RuntimeError:  # the loop is closed, and nobody listens any more
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
            # The edge again: whoever takes the policy may fail with this one, not with the next.
            logger.exception("The policy was read, but not taken over")
