"""`capport run`: the portal as a headless mitmproxy."""

import sys
from argparse import Namespace


def run(arguments: Namespace) -> int:
    """Runs until it is stopped; returns the exit status. No other command imports mitmproxy."""
    from capport.proxy.internals.single_addons import import_singly
    from capport.proxy.internals.verify import NotAsTested, verify

    import_singly()
    try:
        verify(default_addons=False)
    except NotAsTested as error:
        print(error, file=sys.stderr)
        return 1
    from capport.proxy.processes import first_process

    ours = _given(arguments, "policy", "sessions", "events")
    values = [f"portal_{name}={value}" for name, value in ours.items()]
    options = _given(arguments, "mode", "listen_host", "listen_port")
    return first_process.run(options, [*values, *arguments.options], arguments.workers)


def _given(arguments: Namespace, *names: str) -> dict[str, object]:
    """Those of the arguments that were given, by their names."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}
