"""`capport grant` and `capport revoke`: a client made known, and unknown again."""

import contextlib
import getpass
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping

from capport import clock
from capport.commands import (
    CommandError,
    chosen_policy,
    existing_store,
    store_url,
    writable_store,
)
from capport.commands.display import duration, moment
from capport.commands.in_force import Kernel
from capport.core.client import Address, Client, ClientId, Mac, parts_of
from capport.core.policy import Policy
from capport.core.session import Session
from capport.core.standing import standing, standing_of_id
from capport.gate import Gate
from capport.linux import neighbour_lookup
from capport.stores import StoreError

type Macs = Mapping[Address, Mac]
"""The neighbour table: each address on the link, and its MAC."""


def grant(arguments: Namespace) -> None:
    """Opens a session, and returns when it is durable and in force (`in_force.py` says how far)."""
    policy = chosen_policy(arguments)
    macs = _neighbours()
    client = _filed_under(arguments.who, macs)
    present = _present(client, macs)
    _refuse_blocked(client, present, policy)
    url = store_url(arguments, policy)
    with contextlib.closing(writable_store(url, about=())) as store:
        session = Gate(policy, store).grant(
            client,
            lifetime=arguments.lifetime,
            by=_whoever_this_is(),
            how="command",
            name=arguments.name or "",
        )
    in_force = Kernel().wait_until_in(present)
    print(_said(session, present))
    if not in_force:
        absent = "" if any(one.mac for one in present) else ", or it is not there yet"
        raise CommandError(
            f"{client}: the session is in {url}, but the router's rules do not let it through: a"
            " client rule has the last word, no portal that follows this store runs, or a set is"
            f" full, as its log says{absent}"
        )


def revoke(arguments: Namespace) -> None:
    """Ends every session that the client has, also where the store cannot be written."""
    policy = chosen_policy(arguments)
    url = store_url(arguments, policy)
    macs = _neighbours()
    about = _parts(_meant(arguments.who, macs, ()))
    store = existing_store(url, start_closed=True, about=about)
    if store is None:
        raise CommandError(f"{arguments.who} has no session: there is no {url}")
    revoked: list[ClientId] = []
    failures: list[StoreError] = []
    with contextlib.closing(store):
        meant = _meant(arguments.who, macs, [session.client for session in store.sessions()])
        gate = Gate(policy, store)
        for client in meant:
            try:
                if gate.revoke(client):
                    revoked.append(client)
            except StoreError as error:
                failures.append(error)  # that one is in force all the same: now the others
        fault: str | None = getattr(store, "fault", None)
        kernel, now = Kernel(), clock.now()
        still_in = kernel.let_through(_parts(meant))
        out = [client for client in still_in if not store.find(client.ids, now)]
    in_force = kernel.wait_until_out(out)
    for client in revoked:
        print(f"{client} is revoked")
    if failures:
        raise failures[0]
    if not revoked and fault is None:
        raise CommandError(f"{arguments.who} has no session in {url}; see capport clients")
    if not revoked:
        print(f"{arguments.who} is revoked, whether or not it had a session")
    if not in_force:
        raise CommandError(
            f"{arguments.who} is revoked, but the router's rules still let it through: a client"
            " rule has it known, or no portal that follows this store runs; capport router up"
            " POLICY puts the rules right"
        )


def _filed_under(who: ClientId, macs: Macs) -> ClientId:
    """An address on the link is filed under its MAC, so that its other addresses count too."""
    mac, address = parts_of(who)
    return who if mac or not address else Client(address, macs.get(address)).id


def _present(client: ClientId, macs: Macs) -> list[Client]:
    """Who has this id on the network now."""
    mac, address = parts_of(client)
    if address is None:
        return [Client(at, mac) for at, found in macs.items() if found == mac]
    found = macs.get(address)
    return [Client(address, found)] if mac in (None, found) else []


def _meant(who: ClientId, macs: Macs, filed: Iterable[ClientId]) -> list[ClientId]:
    """Each id that a session of the client's may be filed under: the device's, at any address.

    They are not looked up first: where the store cannot be read they are revoked all the same.
    """
    mac, address = parts_of(who)
    if mac and address:
        return [who]
    if address is not None:
        mac = macs.get(address)
    addresses = {at for at, found in macs.items() if found == mac} | (
        {address} if address else set()
    )
    ids = {who: None}
    for client in (Client(at, mac) for at in addresses if at is not None):
        ids |= dict.fromkeys(client.ids)
    for client_id in filed:
        bound_mac, bound_address = parts_of(client_id)
        if bound_mac and bound_address and (bound_mac == mac or bound_address == address):
            ids[client_id] = None
    return [*ids]


def _parts(ids: Iterable[ClientId]) -> set[Mac | Address]:
    """Each MAC and each address in one of them."""
    return {part for client in ids for part in parts_of(client) if part}


def _neighbours() -> dict[Address, Mac]:
    """Addresses and MACs as the portal finds them; none where the kernel gives none."""
    with contextlib.suppress(OSError):
        return neighbour_lookup.table()
    return {}


def _refuse_blocked(client: ClientId, present: list[Client], policy: Policy) -> None:
    """Raises CommandError where the policy's word on the client would make a session void."""
    now = clock.now()
    found = [standing(who, policy, None, now) for who in present]
    found = found or [standing_of_id(client, policy, None, now)]
    if all(one.is_blocked for one in found):
        raise CommandError(f"{client} {found[0].because}: a session would change nothing")


def _said(session: Session, present: list[Client]) -> str:
    """What was granted, to whom, until when."""
    mac, _ = parts_of(session.client)
    where = ", ".join(str(who.address) for who in sorted(present, key=_by_address))
    if mac is None:
        at = "by its address; no MAC is known for it"
    else:
        at = f"now at {where}" if where else "not on the network now"
    lasts = session.expires - session.granted
    idle = f", or {duration(session.idle)} without traffic" if session.idle is not None else ""
    until = moment(time.time() + lasts)
    return f"{session.client} ({at}) is known until {until}, for {duration(lasts)}{idle}"


def _by_address(client: Client) -> tuple[int, int]:
    return client.address.version, int(client.address)


def _whoever_this_is() -> str:
    """The person behind sudo, where there is one; a number where the user has no name."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
    return name.encode(errors="backslashreplace").decode()  # of the environment: any bytes
