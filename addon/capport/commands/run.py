"""`capport run`: the portal as a headless mitmproxy."""

import sys
from argparse import Namespace


def run(arguments: Namespace) -> int:
    """Runs until it is stopped; returns the exit status. No other command imports mitmproxy."""
    from capport.proxy.internals.verify import NotAsTested, verify

    try:
        verify()
    except NotAsTested as error:
        print(error, file=sys.stderr)
        return 1
    from capport.proxy import first_process

    given = {"policy": arguments.policy, "sessions": arguments.sessions, "events": arguments.events}
    ours = [f"portal_{name}={value}" for name, value in given.items() if value is not None]
    options = {
        "mode": arguments.mode,
        "listen_host": arguments.listen_host,
        "listen_port": arguments.listen_port,
    }
    return first_process.run(
        {name: value for name, value in options.items() if value is not None},
        [*ours, *arguments.options],
        arguments.workers,
    )
