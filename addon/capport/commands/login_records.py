"""The login server's records, for the commands that change them: where, and how late it is."""

import sys
import time
from argparse import Namespace

from capport import clock
from capport.commands import CommandError, chosen_policy, store_url
from capport.core.policy import Conditions, Policy
from capport.stores.opening import store_path
from capport.web.date_reckoning import Moment
from capport.web.records import Records, records_beside


def moment() -> Moment:
    """What this machine's clocks say, for records that live by them."""
    return Moment(time.time(), clock.boot_id(), clock.now())


def warn_unless_asked(arguments: Namespace, policy: Policy, wanted: Conditions) -> None:
    """Says on stderr where the login server of `--policy` asks nobody for what was just made."""
    if arguments.policy is None:
        return
    server = policy.login_server
    if server is None or server.conditions is not wanted:
        has = (
            "no login_server" if server is None else f"login_server.conditions: {server.conditions}"
        )
        print(f"warning: nobody is asked for it: {arguments.policy} has {has}", file=sys.stderr)


def records_of(arguments: Namespace) -> Records:
    """The records beside the session store. Raises CommandError, StoreError."""
    url = store_url(arguments, chosen_policy(arguments))
    path = records_beside(url)
    if path is None:
        raise CommandError(f"{url} has no records beside it: name the store with --sessions PATH")
    return Records(path, like=store_path(url))
