"""`capport fleet`: the routers that share a session store, and how far each of them has read."""

import dataclasses
import json
from argparse import Namespace

from capport.commands import CommandError, chosen_policy
from capport.extras import lacking
from capport.stores.opening import store_url
from capport.stores.redis_url import is_redis, parse_redis_url
from capport.terminal import cells, duration, rows_in_columns

_TITLES = ("ROUTER", "SEEN", "BEHIND", "OWN", "KNOWN", "UNSENT", "REFUSED", "CLOCK")
_NAME = 24
QUIET = 10.0  # seconds without a sign of life after which a router counts as away


def fleet(arguments: Namespace) -> None:
    """Prints each router, when it was last seen, and what it has that the others have not."""
    url = store_url(arguments.sessions, chosen_policy(arguments))
    if not is_redis(url):
        raise CommandError(
            f"{url} is the store of one machine; routers that share their sessions have"
            " sessions.store: redis://HOST:PORT/DB"
        )
    if lacks := lacking("redis"):
        raise CommandError(f"this command {lacks}")
    from capport.stores.redis.fleet_view import look

    try:
        place = parse_redis_url(url)
    except ValueError as error:
        raise CommandError(str(error)) from None
    view = look(place)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(view), indent=2))
        return
    print(f"Redis at {view.primary}: records of {view.records} clients")
    rows: list[tuple[str, ...]] = [_TITLES]
    for one in view.routers:
        seen = "now" if one.ago < QUIET else f"{duration(one.ago)} ago"
        counts = (one.own, one.known, one.unsent, one.refused)
        lag = f"{one.lag:.1f} s" if one.lag else "no"
        rows.append((one.name, seen, lag, *map(str, counts), f"{one.skew:+.1f} s"))
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], _NAME)
    print("\n".join(rows_in_columns(rows, widths)))
    if not view.routers:
        print("No router has shown a sign of life within a day.")
