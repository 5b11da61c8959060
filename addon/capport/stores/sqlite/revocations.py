"""Which clients are revoked whatever the database says, and where that is noted.

A revocation goes to the first of these places that accepts it:

1. the database; on a full disk, after the MiB that is reserved for this has been freed;
2. `FILE-revoked` beside it (`revocation_file.py`): every process obeys it, and it is as durable as
   a commit;
3. such a file in /run/capport or XDG_RUNTIME_DIR: every process obeys it until the next reboot;
4. the memory of this process, which alone obeys it.

In cases 3 and 4 StoreError is raised although the client is revoked, and says what to do next.
"""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.replica import granted
from capport.stores.sqlite.revocation_file import RevocationFile

logger = logging.getLogger(__name__)


class Revocations:
    """The revocations of the store at `path`; `spares` are the folders of the third place."""

    def __init__(self, path: Path, spares: Sequence[Path]) -> None:
        spare = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-revoked"
        self.places = (
            RevocationFile(Path(f"{path}-revoked"), path),
            *(RevocationFile(folder / spare, path) for folder in spares),
        )
        self.unnoted: set[ClientId] = set()
        """Clients that are revoked in this process only."""
        # Clients that are being revoked now, or are unnoted; since when, in store time.
        self._since: dict[ClientId, float] = {}

    def begin(self, client: ClientId, now: float) -> None:
        """Revokes `client` from here on, unless it was granted after `now`, in store time."""
        self._since[client] = now

    def end(self, client: ClientId) -> None:
        """Ends what `begin` began, unless the revocation is in this process only."""
        if client not in self.unnoted:
            self._since.pop(client, None)

    def since(self, client: ClientId) -> float:
        """Since when `client` is revoked, in store time."""
        return self._since.get(client, -math.inf)

    def shifted(self, seconds: float) -> None:
        """Adds `seconds` to all times, because another file has another store time."""
        self._since = {client: since + seconds for client, since in self._since.items()}

    def noted(self) -> set[ClientId]:
        """The clients that are noted in one of the places."""
        return {client for place in self.places for client in place.read()}

    def waiting(self) -> bool:
        """Whether there are revocations that the database does not have yet."""
        return bool(self.unnoted) or any(place.read() for place in self.places)

    def all(self, noted: set[ClientId]) -> set[ClientId]:
        """All revoked clients: those in `noted`, and those known to this process only."""
        return noted | self._since.keys()

    def cover(self, client: ClientId, record: bytes | None, noted: set[ClientId]) -> bool:
        """Whether `client` is revoked and the session in `record` was not granted afterwards."""
        since = self._since.get(client)
        return client in noted or (
            since is not None and record is not None and granted(record) <= since
        )

    def note(self, client: ClientId, error: StoreError) -> None:
        """Notes a revocation that the database did not accept (places 2 to 4 of this module)."""
        beside = self.places[0]
        for place in self.places:
            try:
                if place is not beside:
                    place.path.parent.mkdir(mode=0o755, exist_ok=True)
                place.add(client)
            except OSError:
                continue
            if place is beside:
                logger.warning(f"{error}; {client} is revoked, and noted in {place.path}")
                return
            raise StoreError(
                f"{error}; {client} is revoked, but only until the next reboot (noted in"
                f" {place.path}): repair this, then revoke it again"
            ) from error
        self.unnoted.add(client)
        raise StoreError(
            f"{error}; {client} is revoked in this process only: others do not know of it, and a"
            " restart forgets it; repair this, then revoke it again"
        ) from error
