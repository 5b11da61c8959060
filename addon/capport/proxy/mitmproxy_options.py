"""Declares our options, and checks mitmproxy's: some are forced, some would open the gate."""

import difflib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs

from capport.core.place import Place
from capport.log_limits import StrangersFilter
from capport.policy import values
from capport.proxy.internals import log
from capport.proxy.internals import options as internal_options
from capport.service.settings import Settings

OURS = {
    "portal_policy": "The policy file. It is reloaded when it changes. Default: the embedded"
    " policy.",
    "portal_sessions": "Where sessions are kept: a path, sqlite:///PATH, or :memory:. Default: what"
    " the policy says, else a file in the user's state directory.",
    "portal_api": "ADDRESS:PORT on loopback where the API for your own login server also listens."
    " Callers need a token (capport token new). Default: only the unix socket api.sock.",
    "portal_events": "A file to which each event is written as one JSON line.",
    "portal_metrics": "ADDRESS:PORT on loopback where Prometheus finds the portal's metrics.",
    "portal_shown": "How many refusals a second are shown as flows, a quarter of them of one client"
    " (see portal.watch). The events have all. Default: 20, or 0 in capport run.",
}
NUMBERS = {"portal_shown": 20}
"""Those that are numbers, with their defaults. The others are texts, and None by default."""

FORCED: dict[str, Any] = {
    "connection_strategy": "lazy",  # eager connects to the origin before anything is decided
    "onboarding": False,  # if on, mitm.it answers unknown clients
    "block_global": False,  # if on, clients with public addresses are refused, as with IPv6
    "upstream_cert": False,  # if on, the origin is asked for its certificate before a request
    "validate_inbound_headers": True,  # prevents request smuggling
}

LEAKED_CA = (
    "it signs with a leaked CA key that some clients trust, so a client that checks certificates"
    " looks like one that does not (RFC 6585 section 7.4)"
)

REFUSED: dict[str, str] = {
    "ignore_hosts": "hosts that it matches bypass every rule",
    "allow_hosts": "hosts that it does not match bypass every rule",
    "tcp_hosts": "hosts that it matches bypass every rule for HTTP",
    "udp_hosts": "hosts that it matches bypass every rule for HTTP",
    "stream_large_bodies": "it forwards a body before anything is decided;"
    " to stream what known clients send, use http.known in the policy",
    "body_size_limit": "it answers 413 in the portal's place",
    "emudhra": LEAKED_CA,
    "emudhra_old": LEAKED_CA,
}

SERVED = (
    mode_specs.RegularMode,
    mode_specs.TransparentMode,
    mode_specs.Socks5Mode,
    mode_specs.TunMode,
)
NOT_SERVED = {
    "wireguard": "all its clients have one address, so the portal cannot distinguish them",
    "reverse": "it serves a server, not clients that want to reach the network",
    "upstream": "another proxy connects to the place a client wants, where the portal cannot see",
    "local": "its clients are this machine's own programs",
    "dns": "it resolves names for unknown clients before anything is decided",
    "osproxy": "its clients are this machine's own programs",
}

STRANGERS = (
    "mitmproxy.addons.tlsconfig",
    "mitmproxy.addons.dns_resolver",
    "mitmproxy.net.",
    "mitmproxy.proxy.",
    "capport.proxy.front_protocol",
    "capport.proxy.upstream",
    "capport.proxy.layers.http1",
)
"""Loggers that any stranger can make write. Some addons (disable_h2c) use the root logger too."""

end: Callable[[int], NoReturn] = os._exit
"""Ends the process at once. Tests that run mitmproxy in their own process replace it."""


class Unusable(exceptions.OptionsError):
    """An option that the portal cannot use: one line that says which and why."""


def declare(loader: Loader) -> None:
    """Declares our options, forces mitmproxy's, and sets up the log. Raises Unusable."""
    # mitmproxy exits when any error is logged during the start. But with a full disk or a damaged
    # database the portal can still serve: it denies what depends on them, and says so. An error
    # that must stop the start calls `stop_the_start`.
    log.outlive_errors_of("capport")
    log_at_once()
    log_strangers_seldom()
    check_deferred(loader.master.options)
    for name, text in OURS.items():
        default = NUMBERS.get(name)
        kind = cast(type, str | None) if default is None else int
        loader.add_option(name, kind, default, text)
    loader.master.options.update_known(**FORCED)  # those that this mitmproxy has


def settings_of(options: Any) -> Settings:
    """The settings that our options contain. Raises Unusable."""
    return Settings(
        policy=path_of("portal_policy", options.portal_policy),
        sessions=options.portal_sessions or None,
        events=path_of("portal_events", options.portal_events),
        api=_on_loopback("portal_api", options.portal_api, "127.0.0.1:8512"),
        metrics=_on_loopback("portal_metrics", options.portal_metrics, "127.0.0.1:9511"),
    )


def shown_a_second(options: Any) -> int:
    """How many refusals a second are shown. Raises Unusable."""
    number: int = options.portal_shown
    if number < 0:
        raise Unusable(f"portal_shown: {number} is negative; 0 shows none")
    return number


def path_of(option: str, text: str | None) -> Path | None:
    """The path in `text`, with `~` expanded. Raises Unusable if that home folder is unknown."""
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError:
        raise Unusable(f"{option}: {text}: there is no such home folder") from None


def _on_loopback(option: str, text: str | None, example: str) -> Place | None:
    """The place in `text`. Raises Unusable if it is not an address on loopback and a port."""
    if text is None:
        return None
    try:
        place = values.listen(text)
    except ValueError as error:
        raise Unusable(
            f"{option}: {error}; write an address on loopback and a port, such as {example}"
        ) from None
    if isinstance(place.host, str) or not place.host.is_loopback:
        why = f"is not on loopback, and clients could reach it; write {example}, for example"
        raise Unusable(f"{option}: {place} {why}")
    return place


def hold(options: Options) -> None:
    """Raises Unusable if an option would open the gate, now or when it is changed later.

    A later change is checked before any addon sees it. Otherwise mitmproxy's own addons would
    stop serving one mode and start another before the change is rolled back.
    """
    check(options)
    options.subscribe(_hold, [it for it in (*FORCED, *REFUSED, "mode") if it in options])


def _hold(options: Options, updated: set[str]) -> None:
    try:
        check(options)
    except Unusable:
        # mitmproxy itself rolls back a change, but not one by its command `options.reset`.
        for name in FORCED:
            if name in options:
                internal_options.set_silently(options, name, FORCED[name])
        raise


def check(options: Options) -> None:
    """Raises Unusable if an option would open the gate, or names a mode that we do not serve."""
    for name, value in FORCED.items():
        if name in options and getattr(options, name) != value:
            raise Unusable(f"the portal needs {name}={str(value).lower()}; it cannot be changed")
    for name, why in REFUSED.items():
        if name in options and getattr(options, name):
            raise Unusable(f"{name} cannot be used with the portal: {why}")
    for text in options.mode:
        try:
            spec = mode_specs.ProxyMode.parse(text)
        except ValueError as error:
            raise Unusable(f"mode {text}: {error}") from None
        if not isinstance(spec, SERVED):
            why = NOT_SERVED.get(spec.type_name, "the portal does not know it")
            served = ", ".join(mode.type_name for mode in SERVED)
            raise Unusable(
                f"mode {text}: not served by the portal, because {why} (served: {served})"
            )


def check_deferred(options: Options) -> None:
    """Raises Unusable if one of our options has no value, two values, or a misspelt name.

    mitmproxy would say nothing, and drop the option and the script.
    """
    for name, given in internal_options.undeclared(options).items():
        if name in OURS:
            if len(given) != 1 or not isinstance(given[0], str) or not given[0]:
                raise Unusable(f"{name} needs one value; it was given {_given(given)}")
            if name in NUMBERS and not given[0].removeprefix("-").isdecimal():
                raise Unusable(f"{name}: {given[0]} is not a number; {NUMBERS[name]} would do")
        elif name.startswith("portal_") or difflib.get_close_matches(name, OURS, cutoff=0.8):
            near = difflib.get_close_matches(name, OURS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(OURS)}"
            raise Unusable(f"{name} is not an option; {hint}")


def stop_the_start(error: Exception) -> NoReturn:
    """Ends the process before it serves anybody, with the error on stderr and exit status 1.

    `sys.exit` would let the event loop run on for a while. mitmproxy opens its port before it loads
    a script, so it would accept connections meanwhile, and raise while it ends.
    """
    print(error, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    end(1)


def log_at_once() -> None:
    """Writes each line of the log at once: Python keeps 8 KiB back if stdout is no terminal.

    When a process is killed, its last lines are what the operator looks for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def log_strangers_seldom() -> None:
    """Shortens and limits the log lines that any stranger can cause, mitmproxy's too."""
    ours = StrangersFilter()
    for name in ("", *logging.root.manager.loggerDict):
        if not name or name.startswith(STRANGERS):
            logger = logging.getLogger(name)
            for other in logger.filters[:]:
                if isinstance(other, StrangersFilter):
                    logger.removeFilter(other)
            logger.addFilter(ours)


def _given(values: list[object]) -> str:
    if len(values) > 1:
        return f"{len(values)}: {', '.join(map(str, values))}"
    return "none" if not values or values[0] in ("", None) else repr(values[0])
