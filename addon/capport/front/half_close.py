"""How long a connection stays half open after its last answer, so that the client can read that.

RFC 9112 section 9.6: if a server closes a connection with unread data, TCP resets it, and the
client may lose the answer. A client that sends everything before it reads (urllib, Java) never
sees it. So our half is closed first, and what still comes is read and dropped, in stages: there is
another stage as long as enough data comes.
"""

from typing import Final

STAGE: Final = 2.0  # seconds in a stage: for a client to read its answer, and close or send more
STAGES: Final = 15  # at most: half a minute in all, as in nginx
LEAST: Final = 16 * 1024  # bytes in a stage, or it is the last: a real upload sends more
MOST: Final = 24 * 1024 * 1024  # bytes in all, if the length of the body is unknown
DECLARED: Final = 256 * 1024 * 1024  # bytes in all, if the head says how long the body is


class Stages:
    """Counts what is dropped. `declared` is the length of the body, 0 if it is unknown.

    A body longer than `DECLARED` could not end in time, so only `MOST` bytes of it are read.
    """

    def __init__(self, declared: int = 0) -> None:
        self._most = DECLARED if declared <= DECLARED and declared else MOST
        self._received = 0  # bytes in this stage
        self._stages = 1

    def takes(self, size: int) -> bool:
        """Counts `size` bytes that were dropped; False if they are too many in all."""
        self._received += size
        self._most -= size
        return self._most >= 0

    def go_on(self) -> bool:
        """Whether another stage begins at the end of this one."""
        goes_on = self._received >= LEAST and self._stages < STAGES
        self._received = 0
        self._stages += 1
        return goes_on
