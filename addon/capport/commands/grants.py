"""`capport grant` and `capport revoke`: make a client known, and unknown again."""

import contextlib
import getpass
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from capport import clock
from capport.commands import (
    CommandError,
    chosen_policy,
    existing_store,
    warn_if_alone,
    writable_store,
)
from capport.commands.in_force import RouterRules
from capport.core.client import Address, Client, ClientId, Mac, parts_of
from capport.core.policy import Policy
from capport.core.session import Session
from capport.core.standing import standing, standing_of_id
from capport.gate import Gate
from capport.linux import neighbour_lookup
from capport.stores import SessionStore, StoreError
from capport.stores.opening import store_url
from capport.terminal import duration, moment

type Macs = Mapping[Address, Mac]
"""The neighbour table: each address on the link, and its MAC address."""


def grant(arguments: Namespace) -> None:
    """Opens a session, and returns once it is stored and in force (see in_force.py)."""
    policy = chosen_policy(arguments)
    macs = _neighbours()
    client = _session_id(arguments.who, macs)
    present = _present(client, macs)
    _refuse_blocked(client, present, policy)
    url = store_url(arguments.sessions, policy)
    with contextlib.closing(writable_store(url, about=())) as store:
        session = Gate(policy, store).grant(
            client,
            lifetime=arguments.lifetime,
            by=_operator(),
            how="command",
            name=arguments.name or "",
        )
        warn_if_alone(store)
    in_force = RouterRules().wait_until_in(present)
    print(_said(session, present))
    if not in_force:
        absent = "" if any(one.mac for one in present) else ", or the client is not there yet"
        raise CommandError(
            f"{client}: the session is in {url}, but the router's rules do not let it through: a"
            " client rule overrides it, no portal that uses this store runs, or a set is full, as"
            f" the portal's log says{absent}"
        )


def revoke(arguments: Namespace) -> None:
    """Ends every session of the client, even if the store cannot be written."""
    policy = chosen_policy(arguments)
    url = store_url(arguments.sessions, policy)
    macs = _neighbours()
    about = _parts(_ids_of(arguments.who, macs, ()))
    store = existing_store(url, start_closed=True, about=about)
    if store is None:
        raise CommandError(f"{arguments.who} has no session: there is no {url}")
    ended = end_sessions(
        store,
        policy,
        lambda filed: _ids_of(arguments.who, macs, [one.client for one in filed]),
    )
    if not ended.clients and ended.fault is None:
        raise CommandError(f"{arguments.who} has no session in {url}; see capport clients")
    if not ended.clients:
        print(f"{arguments.who} is revoked, whether or not it had a session")
    ended.require_in_force(str(arguments.who))


@dataclass(frozen=True, slots=True)
class Ended:
    """The clients whose sessions were ended, the store's fault, and whether the kernel has it."""

    clients: list[ClientId]
    fault: str | None
    is_in_force: bool

    def require_in_force(self, what: str) -> None:
        """Raises CommandError if the router's rules still let one of the clients through."""
        if not self.is_in_force:
            raise CommandError(
                f"{what} is revoked, but the router's rules still let it through: a client rule"
                " makes it known, or no portal that uses this store runs; to bring the rules up to"
                " date, run capport router up POLICY"
            )


def end_sessions(
    store: SessionStore,
    policy: Policy,
    choose: Callable[[Iterable[Session]], list[ClientId]],
) -> Ended:
    """Ends sessions, prints whose, closes the store, and waits until that is in force.

    `choose` returns the ids to revoke, and gets the sessions in the store. Raises StoreError if an
    end is not stored; every session has ended all the same.
    """
    revoked: list[ClientId] = []
    failures: list[StoreError] = []
    with contextlib.closing(store):
        meant = choose(store.sessions())
        gate = Gate(policy, store)
        for client in meant:
            try:
                if gate.revoke(client):
                    revoked.append(client)
            except StoreError as error:
                failures.append(error)  # revoked, but not stored; go on with the others
        fault = store.fault
        if not failures:
            warn_if_alone(store)
        rules, now = RouterRules(), clock.now()
        still_in = rules.let_through(_parts(meant))
        out = [client for client in still_in if not store.find(client.ids, now)]
    in_force = rules.wait_until_out(out)
    for client in revoked:
        print(f"{client} is revoked")
    if failures:
        raise failures[0]
    return Ended(revoked, fault, in_force)


def _session_id(who: ClientId, macs: Macs) -> ClientId:
    """The id for the session: the MAC of an address on the link, so all its addresses count."""
    mac, address = parts_of(who)
    return who if mac or not address else Client(address, macs.get(address)).id


def _present(client: ClientId, macs: Macs) -> list[Client]:
    """The clients on the network now that have this id."""
    mac, address = parts_of(client)
    if address is None:
        return [Client(at, mac) for at, found in macs.items() if found == mac]
    found = macs.get(address)
    return [Client(address, found)] if mac in (None, found) else []


def _ids_of(who: ClientId, macs: Macs, filed: Iterable[ClientId]) -> list[ClientId]:
    """Each id that a session of this device may have, at any of its addresses.

    An id does not have to be in the store, so the revocation works even if that cannot be read.
    """
    mac, address = parts_of(who)
    if mac and address:
        return [who]
    addresses = set()
    if address is not None:
        mac, addresses = macs.get(address), {address}
    ids = [who]
    for at in addresses | {at for at, found in macs.items() if found == mac}:
        ids += Client(at, mac).ids
    for client_id in filed:
        bound_mac, bound_address = parts_of(client_id)
        if bound_mac and bound_address and (bound_mac == mac or bound_address == address):
            ids.append(client_id)
    return [*dict.fromkeys(ids)]


def _parts(ids: Iterable[ClientId]) -> set[Mac | Address]:
    """Every MAC address and every address in `ids`."""
    return {part for client in ids for part in parts_of(client) if part}


def _neighbours() -> dict[Address, Mac]:
    """The addresses and MACs that the portal would find; empty if the kernel gives none."""
    with contextlib.suppress(OSError):
        return neighbour_lookup.table()
    return {}


def _refuse_blocked(client: ClientId, present: list[Client], policy: Policy) -> None:
    """Raises CommandError if the policy blocks the client, because a session has no effect then."""
    now = clock.now()
    found = [standing(who, policy, None, now) for who in present]
    found = found or [standing_of_id(client, policy, None, now)]
    if all(one.is_blocked for one in found):
        raise CommandError(f"{client} {found[0].because}: a session would change nothing")


def _said(session: Session, present: list[Client]) -> str:
    """The line for a session that was granted: the client, where it is, and until when."""
    mac, _ = parts_of(session.client)
    addresses = [who.address for who in present]
    addresses.sort(key=lambda address: (address.version, int(address)))
    where = ", ".join(map(str, addresses))
    if mac is None:
        at = "by its address; no MAC is known for it"
    else:
        at = f"now at {where}" if where else "not on the network now"
    lasts = session.expires - session.granted
    idle = f", or {duration(session.idle)} without traffic" if session.idle is not None else ""
    until = moment(time.time() + lasts)
    return f"{session.client} ({at}) is known until {until}, for {duration(lasts)}{idle}"


def _operator() -> str:
    """The user who runs this, before sudo; a number if the user has no name."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
    return name.encode(errors="backslashreplace").decode()  # the environment may hold any bytes
