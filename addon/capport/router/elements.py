"""The elements of the kernel's sets of known clients, and when each must be looked at again."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from capport.core.client import Address, ClientId, Mac
from capport.core.deadlines import Deadlines
from capport.core.session import Instant
from capport.router.ruleset import LEASED

IDLE_LEAD = 0.5  # seconds before a session's idle time ends, when its traffic is read once more

type Key = Address | Mac


@dataclass(frozen=True, slots=True)
class Element:
    """One client's address, or one MAC, that the kernel's sets have.

    `until` is when its session ends, and `lapses` when the kernel removes it. `idle` is whether the
    session ends without traffic. If it is `leased`, it counts only while the lease lasts, which is
    in a set of its own. `mac` is the client's own MAC; `hop` is the MAC of the router that the
    client is behind, if it is not on the link.
    """

    key: Key
    mac: Mac | None
    until: Instant = 0.0
    session: ClientId | None = None
    lapses: Instant = 0.0
    idle: bool = False
    hop: Mac | None = None
    leased: bool = False

    @property
    def address(self) -> Address | None:
        """The address; None if the element is a MAC."""
        return None if isinstance(self.key, str) else self.key

    @property
    def sender(self) -> Mac | None:
        """The MAC that the client's frames come from; None on a link without MACs."""
        return self.mac or self.hop

    @property
    def look(self) -> Instant:
        """When to look whether the element ends."""
        return self.until - IDLE_LEAD * self.idle

    @property
    def place(self) -> tuple[str, str]:
        """The name of the set, and the element as nft(8) writes it."""
        prefix = LEASED * self.leased
        if isinstance(self.key, str):
            return f"{prefix}macs", self.key
        if self.sender is None:
            return f"{prefix}routed{self.key.version}", str(self.key)
        return f"{prefix}known{self.key.version}", f"{self.key} . {self.sender}"

    @property
    def places(self) -> list[tuple[str, str]]:
        """`place`, and for an address its place in the set that lets answers to it pass."""
        if isinstance(self.key, str):
            return [self.place]
        return [self.place, (f"{LEASED * self.leased}return{self.key.version}", str(self.key))]


class Elements:
    """All elements, one for each key. It has no lock: the caller must hold one."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Element] = {}
        self._of_mac: dict[Mac, dict[Address, None]] = {}
        self._in: Counter[str] = Counter()
        self._idle: set[Key] = set()
        self._looks = Deadlines[Key]()

    def __iter__(self) -> Iterator[Element]:
        """A copy, so that the caller may add and forget elements in the loop."""
        yield from tuple(self._by_key.values())

    @property
    def idle(self) -> tuple[Key, ...]:
        """The keys of the elements whose session ends without traffic."""
        return tuple(self._idle)

    def __contains__(self, key: Key | None) -> bool:
        return key in self._by_key

    def get(self, key: Key) -> Element | None:
        """The element for `key`."""
        return self._by_key.get(key)

    def addresses(self, mac: Mac) -> tuple[Address, ...]:
        """The addresses that `mac` has in the sets, the oldest first."""
        return tuple(self._of_mac.get(mac, ()))

    def count(self, name: str) -> int:
        """How many elements the set `name` has."""
        return self._in[name]

    def file(self, element: Element) -> None:
        """Adds `element`, in place of the one with the same key."""
        if (before := self._by_key.get(element.key)) is not None:
            self.forget(before)
        self._by_key[element.key] = element
        self._in.update(name for name, _ in element.places)
        if element.mac is not None and element.address is not None:
            self._of_mac.setdefault(element.mac, {})[element.address] = None
        self._looks.set(element.key, element.look)
        if element.idle:
            self._idle.add(element.key)

    def forget(self, element: Element) -> None:
        """Removes `element`."""
        del self._by_key[element.key]
        self._looks.drop(element.key)
        self._idle.discard(element.key)
        self._in.subtract(name for name, _ in element.places)
        if element.mac is not None and element.address is not None:
            mine = self._of_mac[element.mac]
            del mine[element.address]
            if not mine:
                del self._of_mac[element.mac]

    @property
    def next_look(self) -> Instant:
        """When `ended` may next yield a key; infinite if never."""
        return self._looks.next

    def ended(self, now: Instant) -> Iterator[Element]:
        """The elements whose end has come, and those with an idle time whose end is near.

        Traffic that has not been read yet may put the end of the latter off.
        """
        for key in self._looks.due(now):
            element = self._by_key[key]
            if now < element.until:
                self._looks.set(key, element.until)
            yield element
