"""Opens the login server's records for the commands that read or change them."""

import time
from argparse import Namespace

from capport import clock
from capport.commands import CommandError, chosen_policy, warn
from capport.core.policy import Conditions, Policy
from capport.stores.opening import store_path, store_url
from capport.web.date_reckoning import Moment
from capport.web.records import Records, records_beside
from capport.web.shared_records import open_records


def moment() -> Moment:
    """This machine's clocks now; the records need them to tell what has expired."""
    return Moment(time.time(), clock.boot_id(), clock.now())


def warn_unless_asked(arguments: Namespace, policy: Policy, wanted: Conditions) -> None:
    """Warns on stderr if the login server of `--policy` does not ask for what was just made."""
    if arguments.policy is None:
        return
    server = policy.login_server
    if server is None or server.conditions is not wanted:
        has = f"login_server.conditions: {server.conditions}" if server else "no login_server"
        warn(f"nobody is asked for it: {arguments.policy} has {has}")


def records_of(arguments: Namespace) -> Records:
    """The records beside the session store. Raises CommandError, StoreError."""
    url = store_url(arguments.sessions, chosen_policy(arguments))
    if records_beside(url) is None:
        raise CommandError(f"{url} has no records beside it: name the store with --sessions PATH")
    return open_records(url, like=store_path(url))
