"""Sees that the rules stay: puts them back when others take them away, `flush ruleset` above all.

The kernel tells of every change to its tables (NFNLGRP_NFTABLES). Only `nftables.down` takes ours
away to stay away, and says so with its last breath. From a flush until the rules are back, the
router forwards whatever its other tables let through: 6 to 10 ms (measured). What others change
also decides whether known clients' traffic may go untracked.

`capport router up` puts a table in this one's place, with who was known when it looked: a grant or
a revocation of that instant is not in it. So a table that is new is compared with the sessions.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from threading import Thread

from capport.linux import netlink
from capport.linux.libnftables import Nftables
from capport.router import nftables
from capport.router.known_clients import KnownSet

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two looks when the kernel says nothing
RETRY = 0.2  # seconds after something failed
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
        self._failing = False
        self._ended, self._end = os.pipe()
        self._kernel = netlink.connect(netlink.NETFILTER)
        self._kernel.setblocking(False)
        self._kernel.bind((0, 1 << (_GROUP_NFTABLES - 1)))
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
        self._rules.close()

    def _follow(self) -> None:
        while True:
            patience = RETRY if self._failing else EVERY
            watched = [self._kernel.fileno(), self._ended]
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
        news = False
        while True:
            try:
                data = self._kernel.recv(netlink.DATAGRAM)
            except BlockingIOError:
                return news
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                news = True  # it said more than we could take
                continue
            for kind, _, body in netlink.messages(data):
                news = news or kind not in _ELEMENTS
                if kind == _NEW_CHAIN and all(name in body for name in _ENDED):
                    self._ports = None

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
            self._ports = state.proxy_ports
            if table != self._table and self._thread.ident is not None:
                self._known.resync()  # as `KnownSet.start` has just done, before there is a thread
                self._anew()
            self._table = table
            if state.tracked != nftables.others_may_track(self._rules):
                self._known.apply(self._ports, again=True)
        elif self._ports is not None and not self._was_meant():
            self._known.apply(self._ports, again=False)
            self._told(f"table {nftables.TABLE} was taken away by somebody, and is back")

    def _was_meant(self) -> bool:
        """Whether `nftables.down` took our rules away: that they are gone shows a moment before."""
        time.sleep(_UNTIL_SAID)
        self._is_news()
        return self._ports is None
