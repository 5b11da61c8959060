"""The URL of sessions in Redis: `redis://HOST:PORT/DB`, or `rediss://` with TLS."""

import re
from dataclasses import dataclass

from capport.core.place import Place, parse_authority

_PORT = 6379
_URL = re.compile(r"(rediss?)://([^/?#]*)(?:/([0-9]{1,4})?)?(?:\?file=(/[^\0]+))?", re.ASCII)
_NO_USER = (
    "a user and a password do not belong in the URL, where other users of this machine and readers"
    " of the policy see them: put them into CAPPORT_REDIS_USER and CAPPORT_REDIS_PASSWORD_FILE"
)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where Redis is. With several places, the first that is a primary, or knows it, is used.

    `file` is where this router keeps the sessions that it grants; None: in the default store.
    """

    places: tuple[Place, ...]
    database: int = 0
    tls: bool = False
    file: str | None = None

    @property
    def server(self) -> str:
        """The URL without the file."""
        return f"redis{'s' * self.tls}://{','.join(map(str, self.places))}/{self.database}"

    def __str__(self) -> str:
        return self.server if self.file is None else f"{self.server}?file={self.file}"


def is_redis(url: str) -> bool:
    """Whether `url` names sessions in Redis."""
    return url.startswith(("redis:", "rediss:"))


def parse_redis_url(text: str) -> RedisUrl:
    """The URL in `text`. Raises ValueError, and never repeats a password."""
    if "@" in text.partition("?")[0]:
        raise ValueError(_NO_USER)
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not redis://HOST:PORT/DB, or that and ?file=/PATH")
    places = tuple(parse_authority(place, _PORT) for place in match[2].split(","))
    return RedisUrl(places, int(match[3] or 0), match[1] == "rediss", match[4])
