"""The commands that the portal adds to mitmproxy: about sessions, about flows, and the report."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from mitmproxy import command, exceptions, http, types
from mitmproxy.flow import Flow
from mitmproxy.log import ALERT

from capport import lasting
from capport.core.client import Client, ClientId, parse_client_id, parts_of
from capport.core.session import LONGEST
from capport.core.standing import known_sessions
from capport.policy.values import duration
from capport.proxy.flows.flow_report import findings_on, flows_shown, report_on_flows
from capport.proxy.gate_enforcer import PortalService
from capport.report.as_text import lines_of
from capport.session_view import TITLES, cells_of

logger = logging.getLogger(__name__)


class Console:
    """Each `portal.` command. Those that return lines or rows are shown as a table.

    `explain_flow` is `Hooks.explain`, which turns a flow into a case for the gate.
    """

    name = "capport-console"

    def __init__(
        self, service: PortalService, explain_flow: Callable[[http.HTTPFlow], str]
    ) -> None:
        self._service, self._gate = service, service.gate
        self._explain_flow = explain_flow

    @command.command("portal.explain")
    def explain(self, flow: Flow) -> str:
        """Say which rules were asked about a flow, and which decided."""
        if not isinstance(flow, http.HTTPFlow):
            raise exceptions.CommandError("portal.explain needs an HTTP flow")
        return self._explain_flow(flow)

    @command.command("portal.grant")
    def grant(self, client: str, lifetime: str = "") -> None:
        """Open a session for an address or a MAC address; lifetime as 2h, 30m or 7d."""
        who = self._present(client)
        under = who.id if isinstance(who, Client) else who
        try:
            seconds = duration(1, LONGEST)(lifetime) if lifetime else None
        except ValueError as error:
            raise exceptions.CommandError(str(error)) from None
        if barred := self._gate.barred(who):
            raise exceptions.CommandError(f"{under} {barred}: a session would change nothing")
        grant = partial(self._gate.grant, under, lifetime=seconds, by="console", how="portal.grant")
        self._run(grant, f"{under} is known now")

    @command.command("portal.revoke")
    def revoke(self, client: str) -> None:
        """End each session of an address or a MAC address, and its open connections."""
        open_ones = [session.client for session in self._gate.sessions_of(_parsed(client))]
        if not open_ones:
            raise exceptions.CommandError(f"{client} has no session")
        self._run(partial(self._gate.revoke, *open_ones), f"{client} is revoked")

    @command.command("portal.clients")
    def clients(self) -> types.Data:
        """List the clients that a session makes known."""
        now, wall = self._gate.now(), time.time()
        sessions = known_sessions(self._gate.store.sessions(), self._gate.policy, now)
        rows = [[*cells_of(session, now, wall)] for session in sessions]
        return _data([[*TITLES], *rows] if rows else [["Nobody is known."]])

    @command.command("portal.watch")
    def watch(self, client: str) -> None:
        """Show more of one client's refusals, and write each of its requests as an event."""
        who = _parsed(client)
        try:
            self._service.watch(who)
        except ValueError as error:
            raise exceptions.CommandError(str(error)) from None
        logger.log(ALERT, f"{who} is watched")

    @command.command("portal.unwatch")
    def unwatch(self, client: str) -> None:
        """Stop watching a client."""
        who = _parsed(client)
        self._service.unwatch(who)
        logger.log(ALERT, f"{who} is not watched")

    @command.command("portal.report")
    def report(self) -> types.Data:
        """Say what the portal did to the clients whose flows are shown, with all findings."""
        return _data([[line] for line in lines_of(report_on_flows(flows_shown()))])

    @command.command("portal.findings")
    def findings(self, flows: Sequence[Flow]) -> types.Data:
        """List the findings that rest on these flows, such as @focus."""
        found = dict.fromkeys(
            str(one) for each in flows for one in findings_on(each, flows_shown())
        )
        return _data([[line] for line in found] or [["No finding rests on this."]])

    def _present(self, text: str) -> Client | ClientId:
        """The client that has this address now; an id that has a MAC unchanged."""
        who = _parsed(text)
        mac, address = parts_of(who)
        return who if mac or not address else self._gate.client(str(address))

    def _run(self, work: Callable[[], object], done: str) -> None:
        """Runs `work`, which waits for the disk, on a thread; logs `done` or the error."""
        lasting.start(_report(asyncio.to_thread(work), done))


def _data(rows: list[list[str]]) -> types.Data:
    return cast(types.Data, rows)


def _parsed(text: str) -> ClientId:
    try:
        return parse_client_id(text)
    except ValueError as error:
        raise exceptions.CommandError(str(error)) from None


async def _report(work: Awaitable[object], done: str) -> None:
    try:
        await work
    except OSError as error:
        logger.error(str(error))
    else:
        logger.log(ALERT, done)
