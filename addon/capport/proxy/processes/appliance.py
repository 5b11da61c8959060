"""Runs `capport run`: the portal in a mitmproxy that has only the addons that a portal needs.

mitmdump loads about forty addons. Their hooks run for each request, their options can change, keep
or replay a flow, and one of them prints every flow. This module loads only the addons without which
mitmproxy does not serve, and the portal.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mitmproxy import exceptions, master, options
from mitmproxy.addonmanager import AddonManager, Loader
from mitmproxy.addons import (
    block,
    core,
    disable_h2c,
    errorcheck,
    next_layer,
    proxyserver,
    script,
    tlsconfig,
)
from mitmproxy.utils import human

from capport.proxy import mitmproxy_options
from capport.proxy.addon import CaptivePortal
from capport.proxy.internals.log import format_lines
from capport.proxy.internals.options import undeclared
from capport.proxy.processes import event_loop

logger = logging.getLogger(__name__)

# These log warnings and errors only. mitmproxy's own commands quiet the first four. The last one
# writes two lines for each connection, so a client could fill a disk with them.
_QUIET = ("tornado", "asyncio", "hpack", "quic", "mitmproxy.proxy.server")


class _NoOnboarding:
    """Declares the option `onboarding`, which the portal forces off.

    mitmproxy's own addon for it, which serves mitm.it, is not loaded.
    """

    name = "no-onboarding"

    def load(self, loader: Loader) -> None:
        """Declares the option with the value that the portal forces."""
        loader.add_option("onboarding", bool, False, "Serve mitm.it. The portal never does.")


class Supervised:
    """Tells systemd when the portal serves, and regularly that it is alive (sd_notify(3)).

    The event loop sends the signs of life. If it hangs, systemd's `WatchdogSec` ends the process.
    Without systemd, this does nothing.
    """

    name = "supervised"

    def __init__(self) -> None:
        self._watchdog: asyncio.Task[None] | None = None

    def running(self) -> None:
        """Reports the start. This addon is the last in the chain, so all others serve by now."""
        _tell_systemd("READY=1")
        seconds = int(os.environ.get("WATCHDOG_USEC", 0)) / 1e6
        own = str(os.getpid())
        # With another process's WATCHDOG_PID, the variables were inherited and are not for us.
        if seconds > 0 and os.environ.get("WATCHDOG_PID", own) == own:
            self._watchdog = asyncio.create_task(self._report_alive(seconds / 3))

    def done(self) -> None:
        """Reports the end."""
        _tell_systemd("STOPPING=1")
        if self._watchdog:
            self._watchdog.cancel()

    @staticmethod
    async def _report_alive(interval: float) -> None:
        while True:
            _tell_systemd("WATCHDOG=1")
            await asyncio.sleep(interval)


def _tell_systemd(state: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifying:
            notifying.sendto(state.encode(), address)
    except OSError as error:  # for example, no descriptor is left
        # systemd acts on a missing message; the portal continues to serve.
        logger.warning(f"Cannot send {state} to systemd: {path}: {error.strerror}")


class _ToJournal(logging.Formatter):
    """Formats records for journald: a line begins with its level (sd-daemon(3)), and has no time.

    journald reads and removes the level, and adds the time itself. It makes an entry of each line,
    and a line without a level gets the unit's default level.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's message, and its traceback if it has one."""
        client = getattr(record, "client", None)
        said = super().format(record)
        text = f"{human.format_address(client)}: {said}" if client else said
        return "\n".join(f"<{_syslog_level(record.levelno)}>{line}" for line in text.splitlines())


def _syslog_level(level: int) -> int:
    """The level of syslog(3) for one of Python's; in syslog, a lower number is more severe."""
    levels = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((syslog for least, syslog in levels if level >= least), 7)


def _log_to_journal(addons: AddonManager) -> None:
    """Formats the log for systemd's journal, if stdout goes there."""
    try:
        out = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is closed, or is no file of the operating system
        return
    # systemd.exec(5): a parent process may have inherited the variable for its own output.
    if os.environ.get("JOURNAL_STREAM") == f"{out.st_dev}:{out.st_ino}":
        format_lines(addons, _ToJournal())


ADDONS: tuple[Callable[[], object], ...] = (
    core.Core,
    block.Block,  # the operator may set block_private; the portal forces block_global off
    _NoOnboarding,
    disable_h2c.DisableH2C,  # without it, a known client's upgrade to h2c hangs its connection
    proxyserver.Proxyserver,
    script.ScriptLoader,  # the portal's hooks are inserted behind it
    next_layer.NextLayer,
    tlsconfig.TlsConfig,
    errorcheck.ErrorCheck,
)


class PortalAddon(Protocol):
    """The portal's addon: `CaptivePortal`, or `FirstProcess`."""

    def configure(self, updated: set[str]) -> None:
        """Opens the portal. mitmproxy calls it again after each change of an option."""


def run(
    given: Mapping[str, object],
    values: Sequence[str],
    make_portal: Callable[[], PortalAddon] = CaptivePortal,
) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status: 1 if the start failed, else 0.

    `given` holds options of mitmproxy with their values. `values` holds more options, mitmproxy's
    and ours, each as `OPTION=VALUE`.
    """
    loop_factory, name = event_loop.choose()
    try:
        asyncio.run(_serve(given, values, make_portal(), name), loop_factory=loop_factory)
    except exceptions.OptionsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _serve(
    given: Mapping[str, object], values: Sequence[str], portal: PortalAddon, loop: str
) -> None:
    appliance = assembled(given, values, portal, Supervised())
    logger.info(f"Event loop: {loop}")
    _end_on_signals(appliance)
    await appliance.run()


def assembled(
    given: Mapping[str, object], values: Sequence[str], portal: PortalAddon, *more: object
) -> master.Master:
    """Makes a mitmproxy with the portal, and with the addons `more` after it. Nothing serves yet.

    Raises OptionsError. If one of our options cannot be used, the process ends.
    """
    logging.getLogger().setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    opts: Any = options.Options()
    appliance = master.Master(opts, with_termlog=True)
    addons: Any = appliance.addons
    _log_to_journal(addons)
    addons.add(*(make() for make in ADDONS))
    if not any(value.startswith("portal_shown=") for value in values):
        values = (*values, "portal_shown=0")  # nobody watches
    opts.set(*values, defer=True)
    opts.update(**given)
    addons.add(portal, *more)
    if unknown := undeclared(opts):
        names = ", ".join(sorted(unknown))
        mitmproxy_options.stop_the_start(ValueError(f"{names}: capport run has no such option"))
    portal.configure(set(opts.keys()))
    return appliance


def _end_on_signals(appliance: master.Master) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, appliance.shutdown)
    # As mitmproxy's own commands do: go on when the program that reads the log has ended.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
