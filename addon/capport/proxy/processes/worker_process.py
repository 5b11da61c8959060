"""Runs the workers of `capport run --workers`, and the process that they are forked from.

`python -m capport.proxy.processes.worker_process CHANNEL` imports all that a worker needs, and
forks a worker whenever the first process asks for one. So a worker that has ended is replaced after
a moment, although the imports take a second or two.
"""

import ctypes
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from mitmproxy import ctx

from capport.budgets import Budgets
from capport.core.reach import Machine
from capport.events import EventLog
from capport.linux.own_addresses import OWN
from capport.linux.parent import end_with_the_parent
from capport.metrics import Metrics
from capport.proxy.addon import CaptivePortal
from capport.proxy.internals.server import OwnPorts
from capport.proxy.internals.shared_sockets import SharedSockets
from capport.proxy.processes.appliance import run
from capport.service.channel import Channel, forward
from capport.service.shared_state import Shared
from capport.service.worker_service import WorkerService

_NO_DESCRIPTOR = os.strerror(errno.EMFILE)
_CAPABILITY_VERSION, _CAP_NET_ADMIN = 0x20080522, 12  # linux/capability.h


def main(channel: int) -> int:
    """Forks workers until the first process is gone. In a worker, returns its exit status."""
    end_with_the_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no worker that has ended stays a zombie
    first = socket.socket(fileno=channel)
    setting = json.loads(first.recv(1 << 16))
    if not setting["has_tun"]:
        _give_up_the_kernels_rules()
    gc.freeze()  # a collection in a worker does not copy the pages that it shares with the others
    while True:
        asked, ends, _, _ = socket.recv_fds(first, 100, 2)
        if not asked:
            return 0
        worker = 0
        try:
            if len(ends) < 2:  # the kernel leaves out those that it has no number for
                raise OSError(errno.EMFILE, _NO_DESCRIPTOR)
            worker = os.fork()
            if worker == 0:
                break
            process = os.pidfd_open(worker)
        except OSError as error:  # otherwise all workers would end, because this process does
            first.send(f"{worker} {error.strerror}".encode())
        else:
            socket.send_fds(first, [f"{worker} {_NO_DESCRIPTOR}".encode()], [process])
            os.close(process)
        for descriptor in ends:  # so a worker for which there is no descriptor ends
            os.close(descriptor)
    first.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return serve(ends[0], ends[1], setting)


def serve(channel: int, events: int, setting: dict[str, Any]) -> int:
    """Serves clients until the first process ends it, or is gone."""
    end_with_the_parent()
    first = Channel(socket.socket(fileno=channel), unpickles=True)
    select.select([first], [], [])
    match next(first.messages(), None):
        case ["start", int(index), Shared() as shared]:
            pass
        case _:
            return 1  # the first process has ended
    sockets = SharedSockets(setting["shares"], index)
    sockets.install()

    def open_service(settings: object, resolver: object, metrics: Metrics) -> WorkerService:
        return WorkerService(
            setting["sessions"],
            shared,
            first,
            EventLog(forward=forward(socket.socket(fileno=events)) if setting["events"] else None),
            machine=Machine(OWN, OwnPorts()),
            metrics=metrics,
            budgets=Budgets(setting["budgets"]),
            listen=sockets.listen,
            ended=ctx.master.shutdown,
        )

    return run(setting["given"], setting["values"], lambda: CaptivePortal(open_service))


def _give_up_the_kernels_rules() -> None:
    """Drops CAP_NET_ADMIN, because a worker reads strangers' bytes; only a tun mode needs it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted, inheritable: of the first 32 capabilities, then of the others.
    sets = (ctypes.c_uint32 * 6)()
    failed = libc.capget(header, sets)
    for number in range(3):
        sets[number] &= ~(1 << _CAP_NET_ADMIN)
    if failed or libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "a worker cannot give up CAP_NET_ADMIN")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
