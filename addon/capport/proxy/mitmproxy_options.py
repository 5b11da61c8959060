"""mitmproxy's own options: what a gate needs of them, and what would open it."""

import difflib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mitmproxy import exceptions
from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs

from capport.core.place import Place
from capport.log_limits import StrangersFilter
from capport.policy import values
from capport.proxy.internals import log, server
from capport.proxy.internals import options as internal_options
from capport.service.settings import Settings

OURS = {
    "portal_policy": "The policy file; watched, and reloaded when it changes. Default: the"
    " embedded policy.",
    "portal_sessions": "Where sessions are kept: a path, sqlite:///PATH, or :memory:. Default: what"
    " the policy says, else a file in the user's state directory.",
    "portal_api": "ADDRESS:PORT on loopback where the API for a login server of your own listens"
    " too, for whoever has a token (capport token new). Default: only the unix socket api.sock.",
    "portal_events": "A file that gets one JSON line for each event.",
}

FORCED: dict[str, Any] = {
    "connection_strategy": "lazy",  # eager opens the origin's TCP before anything is decided
    "onboarding": False,  # mitm.it answers unknown clients
    "block_global": False,  # refuses clients with public addresses, as IPv6's are
    "upstream_cert": False,  # asks the origin for its certificate before a request
    "validate_inbound_headers": True,  # against request smuggling
}

LEAKED_CA = (
    "it signs with a leaked CA key that clients may trust, so a client that checks certificates"
    " looks like one that does not (RFC 6585 section 7.4)"
)

REFUSED: dict[str, str] = {
    "ignore_hosts": "what it matches goes past every rule",
    "allow_hosts": "what it does not match goes past every rule",
    "tcp_hosts": "what it matches goes past every rule for HTTP",
    "udp_hosts": "what it matches goes past every rule for HTTP",
    "stream_large_bodies": "it sends a body on before anything is decided;"
    " the policy's http.known streams what known clients send",
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
    "wireguard": "all its clients have one address, so they cannot be told apart",
    "reverse": "it stands before a server, not before clients that want to reach the network",
    "upstream": "the place a client wants is decided by another proxy, out of the portal's sight",
    "local": "its clients are this machine's own programs",
    "dns": "it resolves names for unknown clients by itself, before anything is decided",
    "osproxy": "its clients are this machine's own programs",
}

STRANGERS = (
    "mitmproxy.addons.tlsconfig",
    "mitmproxy.addons.dns_resolver",
    "mitmproxy.net.",
    "mitmproxy.proxy.",
    "capport.proxy.upstream",
    "capport.proxy.layers.http1",
)
"""Those who log what a stranger does; some of mitmproxy's addons (disable_h2c) do by the root."""

end: Callable[[int], NoReturn] = os._exit
"""How a process ends at once; for tests that have mitmproxy in their own to put another."""


class Unusable(exceptions.OptionsError):
    """An option with a value that a gate cannot stand behind: one line that says which and why."""


def settings_of(options: Any) -> Settings:
    """What our options say. Raises Unusable."""
    return Settings(
        policy=path_of("portal_policy", options.portal_policy),
        sessions=options.portal_sessions or None,
        events=path_of("portal_events", options.portal_events),
        api=_api(options.portal_api),
    )


def path_of(option: str, text: str | None) -> Path | None:
    """The path in `text`. Raises Unusable for the home of a user who has none here."""
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError:
        raise Unusable(f"{option}: {text}: there is no such home folder") from None


def _api(text: str | None) -> Place | None:
    """Where the API for another login server listens besides its unix socket."""
    if text is None:
        return None
    would_do = "127.0.0.1:8512 would do"
    try:
        place = values.listen(text)
    except ValueError as error:
        raise Unusable(f"portal_api: {error}; here on loopback: {would_do}") from None
    if isinstance(place.host, str) or not place.host.is_loopback:
        why = f"is not on loopback, and clients could reach it: {would_do}"
        raise Unusable(f"portal_api: {place} {why}")
    return place


def force(options: Options) -> None:
    """Sets what a gate needs, of what this mitmproxy has."""
    options.update_known(**FORCED)


def hold(options: Options) -> None:
    """Raises Unusable for what would open the gate, and sees to it that it stays so.

    What is changed later is looked at before any addon hears of it: mitmproxy's own would have
    stopped serving one mode and begun with another by the time they are told to go back.
    """
    check(options)
    options.subscribe(_hold, [it for it in (*FORCED, *REFUSED, "mode") if it in options])


def _hold(options: Options, updated: set[str]) -> None:
    try:
        check(options)
    except Unusable:
        # mitmproxy rolls a change back by itself, but not what its command `options.reset` did.
        for name in FORCED:
            if name in options:
                internal_options.set_silently(options, name, FORCED[name])
        raise


def check(options: Options) -> None:
    """Raises Unusable where an option would open the gate, or names a mode that we do not serve."""
    for name, value in FORCED.items():
        if name in options and getattr(options, name) != value:
            raise Unusable(f"{name}={_text(value)} is what the portal needs; it cannot be changed")
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
    """Raises Unusable where an option of ours was given so that mitmproxy would drop it in silence.

    It drops an option without a value, given twice, or misspelt, and the script with it.
    """
    for name, given in internal_options.undeclared(options).items():
        if name in OURS:
            if len(given) != 1 or not isinstance(given[0], str) or not given[0]:
                raise Unusable(f"{name} needs one value; it was given {_given(given)}")
        elif name.startswith("portal_") or difflib.get_close_matches(name, OURS, cutoff=0.8):
            near = difflib.get_close_matches(name, OURS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OURS)}"
            raise Unusable(f"{name} is no option; {hint}")


def stop_the_start(error: Exception) -> NoReturn:
    """Ends the process before it serves anybody: the error alone on stderr, and exit status 1.

    At once: `sys.exit` would end the event loop in its own time, and mitmproxy, whose port is open
    before it loads a script, would take connections meanwhile and trip over its own end.
    """
    print(error, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    end(1)


def outlive_our_errors() -> None:
    """Has mitmproxy come up although something of ours logs an error meanwhile.

    It exits for any. But a full disk or a damaged database is no reason to be gone altogether: what
    depends on it is closed, and says so, and whatever must stop the start does so itself.
    """
    log.outlive_errors_of("capport")


def log_at_once() -> None:
    """Has each line of the log written at once: Python would keep 8 KiB, unless in a terminal.

    What a process says last before it is killed is what an operator looks for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def log_strangers_seldom() -> None:
    """Has what anybody can bring about logged in short, and seldom, by mitmproxy too."""
    ours = StrangersFilter()
    for name in ("", *logging.root.manager.loggerDict):
        if not name or name.startswith(STRANGERS):
            logger = logging.getLogger(name)
            for other in logger.filters[:]:
                if isinstance(other, StrangersFilter):
                    logger.removeFilter(other)
            logger.addFilter(ours)


def starting() -> bool:
    """Whether mitmproxy has not begun to serve."""
    return not server.is_serving()


def _given(values: list[object]) -> str:
    if len(values) > 1:
        return f"{len(values)}: {', '.join(map(str, values))}"
    return "none" if not values or values[0] in ("", None) else repr(values[0])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
