"""Who is revoked whatever the database says, and where that is noted when it takes no write.

A revocation goes to the first of these that works:

1. the database, on a full disk after a MiB set aside for this has been freed;
2. `FILE-revoked` beside it (`revoked.py`): in force everywhere, as durable as a commit;
3. the same in /run/capport or XDG_RUNTIME_DIR: in force everywhere until the next reboot;
4. nowhere: in force in this process alone.

3 and 4 raise StoreError, though the client is revoked, and say what is still to be done.
"""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from capport.core.client import ClientId
from capport.stores import StoreError
from capport.stores.replica import granted_at
from capport.stores.sqlite.revocation_file import Revoked

logger = logging.getLogger(__name__)


class Revocations:
    """Those of the store at `path`; `spares` are the folders of the third place."""

    def __init__(self, path: Path, spares: Sequence[Path]) -> None:
        spare = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-revoked"
        self.places = (
            Revoked(Path(f"{path}-revoked"), path),
            *(Revoked(folder / spare, path) for folder in spares),
        )
        self.unnoted: set[ClientId] = set()
        # Being revoked just now, or revoked and noted nowhere; since when, in store time.
        self._since: dict[ClientId, float] = {}

    def begin(self, client: ClientId, now: float) -> None:
        """From here on `client` is revoked, unless it was granted after `now`, in store time."""
        self._since[client] = now

    def end(self, client: ClientId) -> None:
        """The database, or one of the places, has it; unless none has."""
        if client not in self.unnoted:
            self._since.pop(client, None)

    def since(self, client: ClientId) -> float:
        """Since when it is revoked, in store time."""
        return self._since.get(client, -math.inf)

    def shifted(self, seconds: float) -> None:
        """Store time is another by so much: the file is another one."""
        self._since = {client: since + seconds for client, since in self._since.items()}

    def noted(self) -> set[ClientId]:
        """Who is noted in one of the places."""
        return {client for place in self.places for client in place.read()}

    def waiting(self) -> bool:
        """Whether there is anything that the database does not have yet."""
        return bool(self.unnoted) or any(place.read() for place in self.places)

    def all(self, noted: set[ClientId]) -> set[ClientId]:
        """Who is revoked, be it noted or not."""
        return noted | self._since.keys()

    def hold(self, client: ClientId, record: bytes | None, noted: set[ClientId]) -> bool:
        """Whether `client` is revoked, and the session in `record` was not granted since."""
        since = self._since.get(client)
        return client in noted or (
            since is not None and record is not None and granted_at(record) <= since
        )

    def note(self, client: ClientId, error: StoreError) -> None:
        """Puts a revocation that the database did not take where it will be found."""
        beside = self.places[0]
        for place in self.places:
            try:
                if place is not beside:
                    place.path.parent.mkdir(mode=0o755, exist_ok=True)
                place.add(client)
            except OSError:
                continue
            if place is beside:
                logger.warning("%s; so %s, which is revoked, is noted beside it", error, client)
                return
            raise StoreError(
                f"{error}; {client} is revoked, but only until the next reboot (noted in"
                f" {place.path}): revoke it again when that is mended"
            ) from error
        self.unnoted.add(client)
        raise StoreError(
            f"{error}; {client} is revoked in this process only: no other can be told and a restart"
            " forgets it; revoke it again when that is mended"
        ) from error
