"""The headless appliance: the portal in a mitmproxy master that carries what a portal needs.

mitmdump brings some forty addons, each with hooks that are called for each request, and options by
which a flow could be changed, kept or replayed; and it writes every flow out. Here are those alone
without which mitmproxy does not serve, and the script's.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

logger = logging.getLogger(__name__)

# The first four as in mitmproxy's own commands. The last writes two lines for each connection, by
# which a client could fill a disk; what goes wrong in one is a warning, and stays.
_QUIET = ("tornado", "asyncio", "hpack", "quic", "mitmproxy.proxy.server")


class _NoOnboarding:
    """Declares the option of mitm.it's addon, which is not here: the portal forces it off."""

    name = "no-onboarding"

    def load(self, loader: Loader) -> None:
        """The option, with the value that is forced."""
        loader.add_option("onboarding", bool, False, "mitm.it, which the portal does not serve.")


class _Supervised:
    """Tells systemd that the portal serves, and from its event loop that it goes on (sd_notify(3)).

    A loop that is stuck says nothing, and `WatchdogSec` ends the process. Without systemd, nothing.
    """

    name = "supervised"

    def __init__(self) -> None:
        self._alive: asyncio.Task[None] | None = None

    def running(self) -> None:
        """The last to be told of the start: all others serve by now."""
        _tell_systemd("READY=1")
        seconds = int(os.environ.get("WATCHDOG_USEC", 0)) / 1e6
        if seconds > 0:
            self._alive = asyncio.create_task(self._say_so(seconds / 3))

    def done(self) -> None:
        """The end."""
        _tell_systemd("STOPPING=1")
        if self._alive:
            self._alive.cancel()

    @staticmethod
    async def _say_so(interval: float) -> None:
        while True:
            _tell_systemd("WATCHDOG=1")
            await asyncio.sleep(interval)


def _tell_systemd(state: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as telling:
            telling.sendto(state.encode(), address)
    except OSError as error:  # it has no descriptor left, for one
        # Whoever supervises us acts on the silence; the portal serves all the same.
        logger.warning(f"systemd was not told {state}: {path}: {error.strerror}")


class _ToJournal(logging.Formatter):
    """Lines with a level that journald takes off (sd-daemon(3)), without the time, which it has.

    Each line is an entry of its own there, and without a level it would be of the unit's.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's message, and a traceback if it has one."""
        client = getattr(record, "client", None)
        said = super().format(record)
        text = f"{human.format_address(client)}: {said}" if client else said
        return "\n".join(f"<{_syslog_level(record.levelno)}>{line}" for line in text.splitlines())


def _syslog_level(level: int) -> int:
    """Of syslog(3), whose order is the other way round."""
    levels = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((syslog for least, syslog in levels if level >= least), 7)


def _log_to_journal(addons: AddonManager) -> None:
    """Gives each line its level where systemd's journal is what reads them."""
    try:
        out = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # closed, or none of the operating system's
        return
    # systemd.exec(5): it may have been set for another's output than ours.
    if os.environ.get("JOURNAL_STREAM") == f"{out.st_dev}:{out.st_ino}":
        format_lines(addons, _ToJournal())


_ADDONS: tuple[Callable[[], object], ...] = (
    core.Core,
    block.Block,  # block_private is an operator's choice; block_global is forced off
    _NoOnboarding,
    disable_h2c.DisableH2C,  # a known client's upgrade would wedge its connection
    proxyserver.Proxyserver,
    script.ScriptLoader,  # the portal's place in the chain is behind it
    next_layer.NextLayer,
    tlsconfig.TlsConfig,
    errorcheck.ErrorCheck,
)


def run(given: Mapping[str, object], values: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT; the exit status, 1 where it could not begin.

    `given` are options of mitmproxy's with their values, `values` more of them and ours, each
    as `OPTION=VALUE`.
    """
    try:
        asyncio.run(_serve(given, values))
    except exceptions.OptionsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _serve(given: Mapping[str, object], values: Sequence[str]) -> None:
    logging.getLogger().setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    opts: Any = options.Options()
    appliance = master.Master(opts, with_termlog=True)
    addons: Any = appliance.addons
    _log_to_journal(addons)
    addons.add(*(make() for make in _ADDONS))
    opts.set(*values, defer=True)
    opts.update(**given)
    portal = CaptivePortal()
    addons.add(portal)
    addons.add(_Supervised())
    if unknown := undeclared(opts):
        names = ", ".join(sorted(unknown))
        mitmproxy_options.stop_the_start(ValueError(f"{names}: no option of the appliance's"))
    portal.configure(set(opts.keys()))
    _end_on_signals(appliance)
    await appliance.run()


def _end_on_signals(appliance: master.Master) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, appliance.shutdown)
    # As mitmproxy's own commands: a log that nobody reads any more is no reason to end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
