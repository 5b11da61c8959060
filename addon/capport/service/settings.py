"""The settings of the portal that are not in the policy file."""

from dataclasses import dataclass
from pathlib import Path

from capport.core.place import Place


class SettingError(Exception):
    """A setting that cannot be used: one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The policy file, and where the rest is. None means the default, or that there is none.

    `socket` is where the API of `capport login` listens without tokens. The addon and `capport run`
    ignore it: their socket is beside the sessions.
    """

    policy: Path | None = None
    sessions: str | None = None
    events: Path | None = None
    api: Place | None = None
    metrics: Place | None = None
    socket: Path | None = None
