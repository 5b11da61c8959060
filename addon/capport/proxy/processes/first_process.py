"""Runs the first process of `capport run --workers`: everything but the clients' connections.

It has the sessions, the kernel's sets, the login server, the API and the events. It opens the ports
of the proxy, but the workers accept from them.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import mode_specs

from capport.budgets import SIZE, Budgets
from capport.core.reach import Machine
from capport.linux import frames, shared_port
from capport.linux.own_addresses import OWN
from capport.policy.policy_file import PolicyError
from capport.proxy import mitmproxy_options
from capport.proxy.internals.listeners import BACKLOG
from capport.proxy.processes import appliance
from capport.proxy.resolver import SystemResolver
from capport.service.nursery import Nursery
from capport.service.service import Service
from capport.service.settings import SettingError
from capport.service.workers import Workers
from capport.stores.opening import store_path

COMMAND = (
    *(sys.executable, "-P", "-m", "capport.proxy.internals.single_addons"),
    "capport.proxy.processes.worker_process",
)


class FirstProcess:
    """Has the place that the hooks have in a worker. `given` and `values` go to each worker."""

    name = "capport"

    def __init__(self, given: Mapping[str, object], values: Sequence[str], count: int) -> None:
        self._given, self._values, self._count = given, values, count
        self._service: Service | None = None

    def load(self, loader: Loader) -> None:
        """Declares our options. mitmproxy itself is not to listen."""
        mitmproxy_options.declare(loader)
        ctx.options.update(server=False)

    def configure(self, updated: set[str]) -> None:
        """Opens the service and the ports, once, or stops the start."""
        if self._service is not None:
            return
        try:
            mitmproxy_options.hold(ctx.options)
            self._open()
        except (exceptions.OptionsError, PolicyError, SettingError, OSError) as error:
            mitmproxy_options.stop_the_start(error)

    def _open(self) -> None:
        ports = set[int]()
        self._service = service = Service(
            mitmproxy_options.settings_of(ctx.options),
            SystemResolver(),
            machine=Machine(OWN, ports),
        )
        if store_path(service.store_url) is None:
            raise SettingError("portal_sessions: workers need sessions in a file, not in :memory:")
        shares: list[dict[str, list[socket.socket]]] = [{} for _ in range(self._count)]
        modes = [mode_specs.ProxyMode.parse(text) for text in ctx.options.mode]
        for mode in modes:
            self._listen(mode, shares)
        self._sockets = [one for share in shares for own in share.values() for one in own]
        ports |= {one.getsockname()[1] for one in self._sockets}
        budgets = os.memfd_create("capport-budgets")
        os.ftruncate(budgets, SIZE)
        Budgets(budgets)  # writes the salt, which all workers share
        setting = {
            "given": self._given,
            "values": list(self._values),
            "sessions": service.store_url,
            "events": mitmproxy_options.settings_of(ctx.options).events is not None,
            "budgets": budgets,
            "has_tun": any(isinstance(mode, mode_specs.TunMode) for mode in modes),
            "shares": [
                {mode: [one.fileno() for one in its] for mode, its in own.items()} for own in shares
            ],
        }
        inherited = [budgets, *(one.fileno() for one in self._sockets)]
        self._workers = Workers(service, Nursery(COMMAND, setting, inherited), self._count)

    def _listen(
        self, mode: mode_specs.ProxyMode, shares: list[dict[str, list[socket.socket]]]
    ) -> None:
        if isinstance(mode, mode_specs.TunMode):  # only one worker can have its interface
            if self._count > 1:
                raise SettingError(f"mode {mode.full_spec}: a tun interface takes --workers 1")
            return
        host = mode.listen_host(ctx.options.listen_host)
        port = mode.listen_port(ctx.options.listen_port) or 0
        groups = shared_port.listen(host, port, self._count, BACKLOG)
        for sockets, share in zip(groups, shares, strict=True):
            share[mode.full_spec] = sockets
            for one in sockets:
                frames.keep(one)

    async def running(self) -> None:
        """Starts everything; when this returns, each worker serves."""
        assert self._service
        try:
            await self._service.start(self._workers)
            await self._workers.start()
        except (OSError, SettingError) as error:
            await self._workers.stop()
            mitmproxy_options.stop_the_start(error)

    async def done(self) -> None:
        """Ends the workers, then everything else."""
        assert self._service
        await self._workers.stop()
        await self._service.stop()


def run(given: Mapping[str, object], values: Sequence[str], workers: int | None) -> int:
    """Runs `capport run`, in this process alone if `workers` is None; returns the exit status."""
    if workers is None:
        return appliance.run(given, values)
    return appliance.run(given, values, lambda: FirstProcess(given, values, workers))
