"""What the login server's pages share, in addition to what they share with the APIs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path

from capport.core.policy import Policy
from capport.log_limits import RETURNS, Seldom
from capport.login.repeated_forms import Forms
from capport.login.theme import NO_FILES, Theme
from capport.login.throttle import Often, Throttle
from capport.web.work_thread import WorkThread

HASHES_WAITING = 8
"""Passwords that may wait for the one thread that hashes; a further one is answered 429."""


@dataclass
class LoginContext:
    """The theme, the forms that were sent recently, and the limits on guessing."""

    throttle: Throttle = field(default_factory=Throttle)
    often: Often = field(default_factory=Often)
    forms: Forms = field(default_factory=Forms)
    returns: Seldom = field(default_factory=partial(Seldom, RETURNS))
    hashing: int = 0

    def __post_init__(self) -> None:
        self._theme: tuple[str | None, Theme] = (None, Theme())
        # One thread: argon2 takes 19 MiB for each password.
        self._hash = WorkThread("portal-hash", patience=inf)

    def theme(self, policy: Policy) -> Theme:
        """The theme in the folder `login/` beside the policy file."""
        if self._theme[0] != policy.file:
            folder = Path(policy.file).absolute().parent / "login" if policy.file else NO_FILES
            self._theme = (policy.file, Theme(folder))
        return self._theme[1]

    async def hashed[Answer](self, what: Callable[[], Answer]) -> Answer:
        """Calls `what` on the one thread for passwords, off the event loop."""
        self.hashing += 1
        try:
            return await self._hash.do(what)
        finally:
            self.hashing -= 1

    def close(self) -> None:
        """Ends the thread once its work is done."""
        self._hash.close()
