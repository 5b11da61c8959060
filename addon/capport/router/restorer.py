"""Sees that the rules stay: puts them back when others take them away, `flush ruleset` above all.

The kernel tells of every change to its tables (NFNLGRP_NFTABLES). Only `nftables.down` takes ours
away to stay away, and says so with its last breath. From a flush until the rules are back, 6 to
15 ms (measured), nothing of a client's is forwarded: that is the fence's (`fence.py`), which others
may take away as well (RTNLGRP_IPV4_RULE). What others change also decides whether known clients'
traffic may go untracked.

`capport router up` puts a table in this one's place, with who was known when it looked: a grant or
a revocation of that instant is not in it. So a table that is new is compared with the sessions.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from threading import Thread

from capport.linux import netlink
from capport.linux.libnftables import Nftables
from capport.router import fence, nftables
from capport.router.known_clients import KnownSet

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two looks when the kernel says nothing
RETRY = 0.2  # seconds after something failed
_RECEIVE_BUFFER_FORCE = 33  # SO_RCVBUFFORCE: beyond net.core.rmem_max, with CAP_NET_ADMIN
_RECEIVE_BUFFER = 4 << 20  # bytes: the rules are put in force a dozen times
_UNTIL_SAID = 0.002  # seconds until the kernel has told of what it has done

# linux/netfilter/nfnetlink.h and nf_tables.h.
_GROUP_NFTABLES = 7
_NEW_CHAIN = 10 << 8 | 3  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN
_ELEMENTS = frozenset(10 << 8 | kind for kind in (12, 14))  # NFT_MSG_NEWSETELEM, DELSETELEM
_ENDED = f"{nftables.TABLE.split()[1]}\0".encode(), f"{nftables.ENDED}\0".encode()


class RulesKeeper:
    """Follows the tables of the network namespace it is made in, from `start` to `close`.

    `told` gets a sentence, on a thread of ours, each time the rules had to be put back; `anew` is
    called there when the table is a new one, whoever's. Raises OSError where there is no netlink,
    or no libnftables.
    """

    def __init__(
        self, known: KnownSet, told: Callable[[str], None], anew: Callable[[], None] = lambda: None
    ) -> None:
        self._known = known
        self._told = told
        self._anew = anew
        self._table: int | None = None  # whose elements are known to be right
        self._rules = Nftables()
        self._ports: tuple[int, ...] | None = None  # of our rules, while they are to be there
        self._meant = False  # that they are not, which somebody has just said
        self._failing = False
        self._ended, self._end = os.pipe()
        self._kernel = _listening(netlink.NETFILTER, 1 << (_GROUP_NFTABLES - 1))
        self._routing = _listening(netlink.ROUTE, fence.GROUPS)
        self._thread = Thread(target=self._follow, name="rules-keeper", daemon=True)

    def start(self) -> None:
        """Begins with the rules that are in force now, if there are any."""
        self._look()
        if self._ports is None and not self._failing:
            logger.warning(
                f"There is no table {nftables.TABLE}: the kernel holds nobody until `capport router"
                " up POLICY`"
            )
        self._thread.start()

    def close(self) -> None:
        """Ends it; the rules stay."""
        os.close(self._end)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._ended)
        self._kernel.close()
        self._routing.close()
        self._rules.close()

    def _follow(self) -> None:
        while True:
            patience = RETRY if self._failing else EVERY
            watched = [self._kernel.fileno(), self._routing.fileno(), self._ended]
            ready, _, _ = select.select(watched, [], [], patience)
            if self._ended in ready:
                return
            try:
                if not ready or self._is_news():
                    self._look()
            except Exception:  # the edge: a thread that ended would put no rules back
                if not self._failing:
                    logger.exception("The router's rules may not be in force; trying again")
                self._failing = True

    def _is_news(self) -> bool:
        """Whether what the kernel has said is of tables, chains or rules: elements are ours.

        All of it: what it says first may be over by what it says last.
        """
        news = bool([*_said(self._routing)])
        for data in _said(self._kernel):
            news = news or not data
            for kind, _, body in netlink.messages(data):
                news = news or kind not in _ELEMENTS
                if kind == _NEW_CHAIN and all(name in body for name in _ENDED):
                    self._ports, self._meant = None, True
        return news

    def _look(self) -> None:
        try:
            self._put_right()
        except (OSError, ValueError) as error:
            if not self._failing:
                logger.error("The router's rules cannot be kept: %s", error)
            self._failing = True
        else:
            self._failing = False

    def _put_right(self) -> None:
        table = nftables.handle(self._rules)  # first: one that comes now is news
        state = nftables.in_force(self._rules)
        if state is not None:
            self._ports, self._meant = state.proxy_ports, False
            same = table == self._table
            if not same and self._thread.ident is not None:
                self._known.resync()  # as `KnownSet.start` has just done, before there is a thread
                self._anew()
            self._table = table
            if self._known.put_fence() and same and table == nftables.handle(self._rules):
                self._told(
                    "the ip rule that holds clients without the table was taken away, and is back"
                )
            if state.tracked != nftables.others_may_track(self._rules):
                self._known.apply(self._ports, again=True)
        elif self._ports is not None and not self._was_meant():
            self._known.apply(self._ports, again=False)
            self._told(f"table {nftables.TABLE} was taken away by somebody, and is back")
        elif self._meant:
            self._known.take_fence_away()  # we may have put it back since
            self._meant = False

    def _was_meant(self) -> bool:
        """Whether `nftables.down` took our rules away: that they are gone shows a moment before."""
        time.sleep(_UNTIL_SAID)
        self._is_news()
        return self._ports is None


def _listening(protocol: int, groups: int) -> socket.socket:
    kernel = netlink.connect(protocol)
    kernel.setblocking(False)
    # Whether the table went by `down` is said once, amid all rules that come and go with it.
    with contextlib.suppress(PermissionError):
        kernel.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _RECEIVE_BUFFER)
    kernel.bind((0, groups))
    return kernel


def _said(kernel: socket.socket) -> Iterator[bytes]:
    """Each datagram that is there; an empty one where the kernel had more to say than we took."""
    while True:
        try:
            yield kernel.recv(netlink.DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield b""
