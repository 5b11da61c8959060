"""`capport voucher new|list|revoke|clock`: vouchers for the embedded login server."""

import contextlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from capport.clock import rfc3339
from capport.commands import CommandError, chosen_policy, existing_store, warn
from capport.commands.grants import end_sessions
from capport.commands.login_records import moment, records_of, warn_unless_asked
from capport.core.client import ClientId
from capport.core.negotiation import Language, preferred_language
from capport.core.policy import Conditions
from capport.core.session import Session
from capport.login import vouchers
from capport.login.words import WORDS
from capport.stores.opening import store_url
from capport.terminal import duration, rows_in_columns
from capport.terminal import moment as local_time
from capport.web.records import Records, Voucher

FLEET_SECONDS = 4.0  # how long a command waits until each router has heard of this one

_IF_RIGHT = "If it was wrong then and is right now, run `capport voucher clock --is-right`."

_TITLES = ("NO", "FOR", "DEVICES", "STATE", "MADE", "NOTE")
_WIDTHS = (5, 7, 7, 12, 16, 23)


def new(arguments: Namespace) -> None:
    """Makes vouchers, and prints a sheet to cut. The codes are not stored, only their digests."""
    policy = chosen_policy(arguments)
    codes = [vouchers.new_code() for _ in range(arguments.count)]
    digests = [found for code in codes if (found := vouchers.digest(code)) is not None]
    lifetime = policy.sessions.lifetime if arguments.lifetime is None else arguments.lifetime
    now = moment()
    with _opened(arguments) as records:
        numbers = records.add_vouchers(
            digests,
            lifetime=lifetime,
            devices=arguments.devices,
            valid=arguments.valid,
            note=arguments.note or "",
            at=now,
        )
        wall = records.reckoning(now).wall
    sheet = vouchers.sheet(
        dict(zip(numbers, codes, strict=True)),
        WORDS[_language()],
        network=policy.network,
        place=_login_server(policy.login_url),
        lifetime=lifetime,
        devices=arguments.devices,
        by=None if arguments.valid is None else local_time(wall + arguments.valid)[:16],
    )
    print(sheet, end="")
    warn_unless_asked(arguments, policy, Conditions.VOUCHER)


def show(arguments: Namespace) -> None:
    """Prints each voucher without its code, which is not stored."""
    with _opened(arguments) as records:
        found, now = records.vouchers(), records.reckoning(moment()).wall
    if arguments.json:
        print(json.dumps([document(voucher, now) for voucher in found], indent=2))
    elif not found:
        print("There are no vouchers.")
    else:
        for line in _table(found, now):
            print(line)


def revoke(arguments: Namespace) -> None:
    """Revokes a voucher, and the sessions that it opened."""
    policy = chosen_policy(arguments)
    with _opened(arguments) as records:
        clients = records.revoke_voucher(arguments.number, time.time())
    if clients is None:
        raise CommandError(f"there is no voucher {arguments.number}; see capport voucher list")
    print(f"voucher {arguments.number} is revoked")
    url, how = store_url(arguments.sessions, policy), f"voucher {arguments.number}"
    store = existing_store(url, start_closed=True) if clients else None
    if store is None:
        return

    def of_this_voucher(sessions: Iterable[Session]) -> list[ClientId]:
        """The clients without those that have another session by now."""
        filed = {session.client: session.how for session in sessions}
        return [one for one in clients if filed.get(one, how).partition(",")[0] == how]

    end_sessions(store, policy, of_this_voucher).require_in_force(how)


def clock(arguments: Namespace) -> None:
    """Prints the time by which vouchers expire; --is-right makes it this machine's clock again."""
    with contextlib.closing(records_of(arguments)) as records:
        if arguments.is_right:
            records.trust_clock(moment())
        now = moment()
        reckoning = records.reckoning(now)
    print(f"The clock says {local_time(now.wall)}.")
    if not reckoning.sure:
        said = local_time(reckoning.wall)
        print(f"It has said {said} before: vouchers that expire are not accepted until it is set.")
        print(_IF_RIGHT)
    elif reckoning.wall - now.wall > 1:
        print(f"It was set back: vouchers expire by {local_time(reckoning.wall)}.")
        print(_IF_RIGHT)
    else:
        print("Vouchers expire by it.")


@contextlib.contextmanager
def _opened(arguments: Namespace) -> Iterator[Records]:
    """The records; warns if other routers of the fleet may not have the same ones yet."""
    with contextlib.closing(records_of(arguments)) as records:
        if (book := records.book) is None:
            yield records
            return
        deadline = time.monotonic() + FLEET_SECONDS
        while book.look() and book.fault is not None and time.monotonic() < deadline:
            time.sleep(0.2)  # the other routers look each second
        yield records
        if book.fault is not None:
            warn(f"not everywhere: {book.fault}")


def _login_server(login_url: str) -> str | None:
    """What a person types to open the login page; None if no policy names one."""
    parts = urlsplit(login_url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else None


def _language() -> Language:
    """The language of the sheet: that of the operator's locale (POSIX, 8.2)."""
    named = filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG")))
    return preferred_language(next(named, ""))


def document(voucher: Voucher, now: float) -> dict[str, object]:
    """A voucher for programs. New members may be added; none is ever changed."""
    return {
        "number": voucher.number,
        "state": _state(voucher, now),
        "lifetime": round(voucher.lifetime),
        "devices": voucher.devices,
        "used": voucher.used,
        "created": rfc3339(voucher.created),
        "expires": None if voucher.expires is None else rfc3339(voucher.expires),
        "revoked": None if voucher.revoked is None else rfc3339(voucher.revoked),
        "note": voucher.note or None,
    }


def _table(found: list[Voucher], now: float) -> Iterator[str]:
    rows = [
        (
            str(voucher.number),
            duration(voucher.lifetime),
            f"{voucher.used} of {voucher.devices}",
            _state(voucher, now),
            local_time(voucher.created)[:16],
            voucher.note,
        )
        for voucher in found
    ]
    widths = (max(_WIDTHS[0], *(len(row[0]) for row in rows)), *_WIDTHS[1:])
    return rows_in_columns([_TITLES, *rows], widths)


def _state(voucher: Voucher, now: float) -> str:
    if voucher.revoked is not None:
        return "revoked"
    if voucher.expires is not None and voucher.expires <= now:
        return "expired"
    return "used up" if voucher.used >= voucher.devices else "open"
