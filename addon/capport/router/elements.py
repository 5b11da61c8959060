"""What the kernel's sets of known clients have in them: each element, and when it is looked at."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from capport.core.client import Address, ClientId, Mac
from capport.core.deadlines import Deadlines
from capport.core.session import Instant

IDLE_LEAD = 0.5  # seconds before an idle time is over that traffic is read once more

type Key = Address | Mac


@dataclass(frozen=True, slots=True)
class Element:
    """An address, or a MAC: until when, for which session, and when the kernel lets go of it.

    `mac` is the client's own; `hop` is that of the router before it, if it is not on the link.
    """

    key: Key
    mac: Mac | None
    until: Instant = 0.0
    session: ClientId | None = None
    lapses: Instant = 0.0
    idle: bool = False
    hop: Mac | None = None

    @property
    def address(self) -> Address | None:
        """None where it is a MAC's."""
        return None if isinstance(self.key, str) else self.key

    @property
    def sender(self) -> Mac | None:
        """The MAC that its frames come from; None on a link without MACs."""
        return self.mac or self.hop

    @property
    def look(self) -> Instant:
        """When it is time to see whether it ends."""
        return self.until - IDLE_LEAD * self.idle

    @property
    def place(self) -> tuple[str, str]:
        """The set and the element in it."""
        if isinstance(self.key, str):
            return "macs", self.key
        if self.sender is None:
            return f"routed{self.key.version}", str(self.key)
        return f"known{self.key.version}", f"{self.key} . {self.sender}"

    @property
    def places(self) -> list[tuple[str, str]]:
        """The same, and where answers to it are let through."""
        if isinstance(self.key, str):
            return [self.place]
        return [self.place, (f"return{self.key.version}", str(self.key))]


class Elements:
    """One for each key. Whoever has it keeps others out."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Element] = {}
        self._of_mac: dict[Mac, dict[Address, None]] = {}
        self._in: Counter[str] = Counter()
        self._looks = Deadlines[Key]()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Element]:
        """Those that there are at the first step."""
        yield from tuple(self._by_key.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def get(self, key: Key) -> Element | None:
        """The one for `key`."""
        return self._by_key.get(key)

    def addresses(self, mac: Mac) -> tuple[Address, ...]:
        """Those that `mac` has in the sets, the oldest first."""
        return tuple(self._of_mac.get(mac, ()))

    def count(self, name: str) -> int:
        """How many there are in the set of that name."""
        return self._in[name]

    def file(self, element: Element) -> None:
        """Adds it, in place of the one with its key."""
        if (before := self._by_key.get(element.key)) is not None:
            self.forget(before)
        self._by_key[element.key] = element
        self._in.update(name for name, _ in element.places)
        if element.mac is not None and element.address is not None:
            self._of_mac.setdefault(element.mac, {})[element.address] = None
        self._looks.set(element.key, element.look)

    def forget(self, element: Element) -> None:
        """Takes it out."""
        del self._by_key[element.key]
        self._looks.drop(element.key)
        self._in.subtract(name for name, _ in element.places)
        if element.mac is not None and element.address is not None:
            mine = self._of_mac[element.mac]
            del mine[element.address]
            if not mine:
                del self._of_mac[element.mac]

    @property
    def next_look(self) -> Instant:
        """When `ended` may have something to say; never, where that is infinite."""
        return self._looks.next

    def ended(self, now: Instant) -> Iterator[Key]:
        """Whose end has come; or is near, where traffic that was not read yet may put it off."""
        for key in self._looks.due(now):
            if now < (until := self._by_key[key].until):
                self._looks.set(key, until)
            yield key
