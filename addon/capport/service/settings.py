"""What whoever starts the portal may say of it, besides the policy."""

from dataclasses import dataclass
from pathlib import Path

from capport.core.place import Place


class SettingError(Exception):
    """A setting that cannot be used: one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The policy file, and where sessions, events and the API are; None stands for the default.

    `socket` is where the API listens without tokens: for `capport login`, beside the sessions else.
    """

    policy: Path | None = None
    sessions: str | None = None
    events: Path | None = None
    api: Place | None = None
    socket: Path | None = None
