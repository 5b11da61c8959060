"""Puts the rules back when another program removes them, for example with `nft flush ruleset`.

The kernel reports every change to its tables (NFNLGRP_NFTABLES). If `nftables.down` removed our
table, we do not put it back: it first adds the chain `nftables.ENDED`, so the reports tell us.

From a flush until the rules are back (6 to 15 ms, measured), the fence of `fence.py` keeps clients'
packets from being forwarded. Other programs may remove the fence too; the kernel reports that as
well (RTNLGRP_IPV4_RULE). When other programs change their tables, we also decide again whether
known clients' traffic may go untracked.

`capport router up` replaces our table with one that has the clients known when it looked; a grant
or a revocation at that very moment may be missing. So each new table is compared with the sessions.
"""

import logging
import os
import select
import time
from collections.abc import Callable
from threading import Thread

from capport.linux import netlink
from capport.linux.libnftables import Nftables
from capport.router import fence, nftables
from capport.router.known_clients import KnownClients

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two looks when the kernel reports nothing
RETRY = 0.2  # seconds until the next attempt after a failure
# Bytes: enough for the reports when the rules are loaded a dozen times. The report that `down`
# removed the table comes once, among many others, and must not be lost.
_BUFFER = 4 << 20
_REPORT_DELAY = 0.002  # seconds until the kernel has reported a change that is in force

# linux/netfilter/nfnetlink.h and nf_tables.h.
_GROUP_NFTABLES = 1 << 6  # NFNLGRP_NFTABLES
_NEW_CHAIN = 10 << 8 | 3  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN
# NFT_MSG_NEWSETELEM, DELSETELEM, and NEWGEN, which ends the reports of each transaction.
_OF_ELEMENTS = frozenset(10 << 8 | kind for kind in (12, 14, 15))
_ENDED = f"{nftables.TABLE.split()[1]}\0".encode(), f"{nftables.ENDED}\0".encode()


class Restorer:
    """Watches the tables of the network namespace it is made in, from `start` to `close`.

    On its own thread, it calls `report` with a sentence each time it puts the rules or the fence
    back, and `on_new_table` when a process has replaced our table. Raises OSError without netlink
    or libnftables.
    """

    def __init__(
        self,
        known: KnownClients,
        report: Callable[[str], None],
        on_new_table: Callable[[], None] = lambda: None,
    ) -> None:
        self._known = known
        self._report = report
        self._on_new_table = on_new_table
        self._table: int | None = None  # the handle of the table that was last compared
        self._rules = Nftables()
        self._ports: tuple[int, ...] | None = None  # proxy ports; None: no rules are to be loaded
        self._was_ended = False  # `nftables.down` has just removed the rules
        self._failing = False
        self._ended, self._end = os.pipe()
        self._kernel = netlink.listen(netlink.NETFILTER, _GROUP_NFTABLES, buffer=_BUFFER)
        self._routing = netlink.listen(netlink.ROUTE, fence.GROUPS, buffer=_BUFFER)
        self._thread = Thread(target=self._follow, name="restorer", daemon=True)

    def start(self) -> None:
        """Starts to keep the rules that are loaded now, if there are any."""
        self._look()
        if self._ports is None and not self._failing:
            logger.warning(
                f"There is no table {nftables.TABLE}: the kernel does not stop unknown clients. Run"
                " `capport router up POLICY`"
            )
        self._thread.start()

    def close(self) -> None:
        """Stops watching; the rules stay."""
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
            except Exception:  # the edge: if the thread ended, nothing would put the rules back
                if not self._failing:
                    logger.exception("The router's rules may not be loaded; capport tries again")
                self._failing = True

    def _is_news(self) -> bool:
        """Whether the kernel reports a change that matters: any but to set elements (our own).

        It reads all reports, because a later one may undo an earlier one.
        """
        news = bool([*netlink.reports(self._routing)])
        for data in netlink.reports(self._kernel):
            news = news or not data
            for kind, _, body in netlink.messages(data):
                news = news or kind not in _OF_ELEMENTS
                if kind == _NEW_CHAIN and all(name in body for name in _ENDED):
                    self._ports, self._was_ended = None, True
        return news

    def _look(self) -> None:
        try:
            self._correct()
        except (OSError, ValueError) as error:
            if not self._failing:
                logger.error(f"Cannot keep the router's rules loaded: {error}")
            self._failing = True
        else:
            self._failing = False

    def _correct(self) -> None:
        state = nftables.in_force()
        if state is not None:
            self._ports, self._was_ended = state.proxy_ports, False
            same = state.handle == self._table
            if not same and self._thread.ident is not None:
                self._known.resync()  # not at the start: `KnownClients.start` has just done it
                self._on_new_table()
            self._table = state.handle
            if self._known.put_fence() and same and state == nftables.in_force():
                self._report(
                    "another program removed the ip rule that stops clients while the table is"
                    " missing; capport put it back"
                )
            if state.tracked != nftables.others_may_track(self._rules):
                self._known.apply(self._ports, only_replace=True)
        elif self._ports is not None and not self._is_ended():
            self._known.apply(self._ports, only_replace=False)
            self._report(f"another program removed table {nftables.TABLE}; capport put it back")
        elif self._was_ended:
            self._known.take_fence_away()  # we may have put it back after `down` took it away
            self._was_ended = False

    def _is_ended(self) -> bool:
        """Whether `nftables.down` removed our rules; the kernel reports that a moment later."""
        time.sleep(_REPORT_DELAY)
        self._is_news()
        return self._ports is None
