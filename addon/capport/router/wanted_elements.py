"""Decides which element a client should have in the kernel's sets, by its standing."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from capport.core.client import Address, Client, ClientId, Mac, Way
from capport.core.policy import Policy
from capport.core.session import Instant, Session, first_open
from capport.core.standing import Standing, by_session, settles, standing, standing_of_id
from capport.linux import Neighbours
from capport.router.elements import Element, Key
from capport.stores import SessionStore

RULE_LEASE = 86_400.0  # seconds that an element lasts if a client rule of the policy put it there
IDLE_GRACE = 5.0  # seconds longer in the kernel, which learns later that an end was put off


class WantedElements:
    """Asks the policy in force, the store and the neighbour table. The caller holds a lock."""

    def __init__(
        self, policy: Callable[[], Policy], store: SessionStore, neighbours: Neighbours
    ) -> None:
        self._policy = policy
        self._store = store
        self._neighbours = neighbours
        self._behind: dict[Address, set[Address]] = {}  # the clients behind each router on the link

    def behind(self, hop: Address) -> Iterable[Address]:
        """The clients behind a router, whose elements have its MAC. Forgets them."""
        return self._behind.pop(hop, ())

    def forget_behind(self) -> None:
        """Forgets which clients are behind which router, before all are looked at again."""
        self._behind.clear()

    def of(self, key: Key, before: Element | None, now: Instant) -> Element | None:
        """The element that `key` should have now, if it had `before` until now."""
        if isinstance(key, str):
            if not settles(by_session):
                return None  # each address of the MAC gets its own element
            session, leased = self._session([ClientId(key)], now)
            found = standing_of_id(ClientId(key), self._policy(), session, now)
            # The MACs of client rules are in the rules, if `settled`.
            return self._of_session(key, key, found, leased=leased)
        if key.is_link_local or key.is_multicast or key.is_unspecified:
            return None  # never forwarded
        way: Way | None = Way(key)
        mac = self._neighbours.find_mac(key)
        if mac is None or self._store.find((ClientId(str(key)),), now):
            way = self._neighbours.way(key)
            if way != Way(key):
                mac = None  # the address is not on the link: any device there could claim it
            elif mac is None and before:
                mac = before.mac
        client = Client(key, mac)
        session, leased = self._session(client.ids, now)
        found = standing(client, self._policy(), session, now)
        if element := self._of_session(key, mac, found, leased=leased):
            return self._with_sender(element, key, way, before)
        if not found.is_known or mac is None:
            return None  # the addresses of client rules are in the rules, if `settled`
        until = now + RULE_LEASE
        if before and before.session is None and before.until > now + RULE_LEASE / 2:
            until = before.until
        return Element(key, mac, until, None, until)

    def _session(self, ids: Sequence[ClientId], now: Instant) -> tuple[Session | None, bool]:
        """The session of the first of `ids` that has an open one, without its lease; if it has one.

        A session counts here also while its lease is over: the kernel has the lease apart.
        """
        for one in ids:
            found = self._store.find((one,), -math.inf)  # also finds it when it is over
            session = first_open([found and found.without_lease()], now)
            if found is not None and session is not None:
                return session, found.is_leased
        return None, False

    def _of_session(
        self, key: Key, mac: Mac | None, found: Standing, *, leased: bool
    ) -> Element | None:
        session = found.open_session
        if session is None:
            return None
        idle = session.idle is not None
        lapses = session.ends + IDLE_GRACE * idle
        return Element(key, mac, session.ends, session.client, lapses, idle, leased=leased)

    def _with_sender(
        self, element: Element, address: Address, way: Way | None, before: Element | None
    ) -> Element | None:
        """`element` with the MAC that its frames come from; None if that MAC is not known.

        Without the MAC, any device on the link could use the address.
        """
        if element.mac is not None or way == Way(None):
            return element
        if way is None or way.hop is None or way.hop == address:
            return None
        self._behind.setdefault(way.hop, set()).add(address)
        hop = self._neighbours.find_mac(way.hop) or (before.sender if before else None)
        return replace(element, hop=hop) if hop else None
