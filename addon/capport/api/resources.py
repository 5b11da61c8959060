"""The calls of the API for the operator's own login server: states, sessions, explain, OpenAPI."""

import asyncio
import json
import re
from dataclasses import replace
from functools import partial
from importlib.resources import files
from itertools import batched
from typing import Any

from tornado import web

from capport.api.call_handler import LEFT_OUT, REQUIRED, Call, CallError, shown_value, wrong
from capport.core import explanation
from capport.core.client import Address, Client, ClientId, parse_address, parse_mac, parts_of
from capport.core.http import is_token
from capport.core.session import LONGEST, Session, open_ones
from capport.web.context import WebContext
from capport.web.states import State, StateError

BY = "api"

AT_ONCE = 50  # sessions described in one turn of the event loop: 1 ms
_LONGEST_METHOD = 20
# What would spoil a list or a log: control characters, line breaks, and lone surrogates.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# A grant has exactly one of these members: it names the client.
_WHO = ("state", "client", "address", "mac")
# The advice when a state cannot be used.
_NEXT_STATE = "the link in the client's next 511 has a new state"


class OneState(Call):
    """`/states/{state}`: which client was refused, and which page it asked for."""

    async def get(self, token: str) -> None:
        """Answers with the content of the state; 404 if it is not valid or has expired.

        409 if `address` is sent, and belongs to another client than the state. Otherwise an
        attacker could send others its own link, and they would sign in for the attacker's device.
        Clients are compared by MAC if there is one (`State.is_of`).
        """
        state, address = _state(self.context, token), self._address()
        if address is not None and not state.is_of(self.gate.client(str(address))):
            raise CallError(409, f"{address} is not the client that was refused; {_NEXT_STATE}")
        spent = await self.context.recorded(partial(self.context.records.spent_by, state.id))
        self.answer(
            {
                "client": {"address": str(state.client.address), "mac": state.client.mac},
                "page": state.page,
                "network": self.gate.policy.network,
                "seconds_remaining": max(0, int(state.expires - self.gate.now())),
                "spent": spent is not None,
            }
        )

    def _address(self) -> Address | None:
        if unknown := [name for name in self.request.query_arguments if name != "address"]:
            why = "is not known; known is address"
            raise CallError(422, f"{shown_value(unknown[0])} {why}", member=unknown[0][:64])
        given = self.get_query_arguments("address")
        if not given:
            return None
        try:
            [address] = map(parse_address, given)
        except ValueError:
            wrong("address", ", ".join(given), "is not an address, such as 192.0.2.7")
        return address


class AllSessions(Call):
    """`/sessions`: lists all sessions, and grants one."""

    async def get(self) -> None:
        """Answers with all open sessions.

        It takes some at a time: 100 000 would hold up everything else for seconds.
        """
        now, comma = self.gate.now(), ""
        self.set_header("Content-Type", "application/json")
        self.write('{"sessions": [')
        for some in batched(self.gate.store.sessions(), AT_ONCE):
            if said := ", ".join(json.dumps(self.describe(one)) for one in open_ones(some, now)):
                self.write(comma + said)
                comma = ", "
            await self.flush()
            await asyncio.sleep(0)
        self.finish("]}\n")

    async def post(self) -> None:
        """Grants a client a session; answers once it is in force (`Gate.grant`).

        The client is named by its state, or by address, MAC or id. A state that is sent again has
        no further effect.
        """
        asked = self.read_members(**dict.fromkeys(_WHO, LEFT_OUT), lifetime=None, name=None)
        who = [name for name in _WHO if asked[name] is not LEFT_OUT]
        if len(who) != 1:
            raise CallError(422, f"send exactly one of {', '.join(_WHO)}", member=(who or _WHO)[0])
        lifetime, name = _lifetime(asked["lifetime"]), _name(asked["name"]) or ""
        if who != ["state"]:
            client = self._present(self._named(who[0], asked[who[0]]))
            # The client may not be there yet, or its MAC not known: then the session is for its
            # address. So this passes the id alone, for which there is no NoMacError.
            under = client.id if isinstance(client, Client) else client
            await self._grant(client, under, lifetime=lifetime, how="", name=name)
            return
        await self._by_state(asked["state"], lifetime, name)

    def _named(self, member: str, value: object) -> ClientId:
        client = self.client(value, member)
        mac, address = parts_of(client)
        if member == "address" and mac:
            wrong(member, value, "is not an address, such as 192.0.2.7")
        if member == "mac" and address:
            wrong(member, value, "is not a MAC, such as 02:00:00:00:00:07")
        return client

    async def _by_state(self, token: object, lifetime: float | None, name: str) -> None:
        if not isinstance(token, str):
            wrong("state", token, "is not a string")
        state = _state(self.context, token, member="state")
        client = self.gate.client(str(state.client.address))
        if state.client.mac is not None and client.mac != state.client.mac:
            raise CallError(409, f"another device has {client.address} now; {_NEXT_STATE}")
        async with self.context.spending(state, client) as spent_by:
            if spent_by is None:
                await self._grant(client, client, lifetime=lifetime, how="state", name=name)
            elif (session := self.grants.find(spent_by)) is not None:
                self.answer_granted(session)
            else:
                raise CallError(410, f"that state was used, and its session is over; {_NEXT_STATE}")

    async def _grant(
        self, client: Client | ClientId, under: Client | ClientId, **said: Any
    ) -> None:
        if barred := self.gate.barred(client):
            raise CallError(409, f"a session would change nothing: that client {barred}")
        before = self.grants.find(client)
        session = await self.grants.grant(under, by=BY, **said)
        self.answer_granted(session, 200 if before else 201)

    def _present(self, client: ClientId) -> Client | ClientId:
        """The client that has this address now; the id unchanged if it is not an address."""
        try:
            return self.gate.client(client)
        except ValueError:
            return client


class OneSession(Call):
    """`/sessions/{client}`: a client's session, by the client's address, MAC, or MAC@ADDRESS."""

    def get(self, text: str) -> None:
        """Answers with the session."""
        self.answer(self.describe(self._session(text)))

    async def patch(self, text: str) -> None:
        """Changes how long the session lasts, counted from now, or its name."""
        asked = self.read_members(lifetime=None, name=None)
        lifetime, name = _lifetime(asked["lifetime"]), _name(asked["name"])
        before = self._session(text)
        left = before.left(self.gate.now()) if lifetime is None else lifetime
        try:
            session = await self.grants.grant(
                before.client,
                lifetime=left,
                by=BY,
                how=before.how,
                name=before.name if name is None else name,
                renews=True,
            )
        except LookupError:  # revoked while this waited for the disk
            raise CallError(404, f"{text[:64]} no longer has a session") from None
        self.answer_granted(session)

    async def delete(self, text: str) -> None:
        """Ends all sessions of the client; answers once none of its traffic passes any more."""
        self._session(text)
        sessions = self.gate.sessions_of(self.client(text))
        await self.grants.revoke(*(session.client for session in sessions))
        self.set_status(204)

    def _session(self, text: str) -> Session:
        if (session := self.session_of(self.client(text))) is None:
            raise CallError(404, f"{text[:64]} has no session")
        return session


class Explain(Call):
    """`/explain`: the verdict on a request, each rule that was asked, and the one that decided."""

    def post(self) -> None:
        """Answers as `capport explain --json` does. It counts nothing towards limits or metrics."""
        asked = self.read_members(client=REQUIRED, mac=LEFT_OUT, url=REQUIRED, method="GET")
        said = {name: value for name, value in asked.items() if value is not LEFT_OUT}
        for name, value in said.items():
            if not isinstance(value, str) or len(value) > 4096:
                wrong(name, value, "is not a string of at most 4096 characters")
        if not is_token(said["method"]) or len(said["method"]) > _LONGEST_METHOD:
            wrong("method", said["method"], "is not a method, such as GET")
        client = self._client(**said)
        try:
            url = explanation.parse_url(said["url"])
            found = self.gate.explain_url(client, url, said["method"])
            self.answer(explanation.document(found, self.gate.policy))
        except ValueError as error:
            raise CallError(422, f"url {str(error)[:200]}", member="url") from None

    def _client(self, client: str, mac: str | None = None, **_: str) -> Client:
        try:
            found = self.gate.client(client)
        except ValueError:
            wrong("client", client, "is not an address, such as 192.0.2.7")
        try:
            return found if mac is None else replace(found, mac=parse_mac(mac))
        except ValueError:
            wrong("mac", mac, "is not a MAC, such as 02:00:00:00:00:07")


class Description(Call):
    """`/openapi.json`: the description of this API."""

    def get(self) -> None:
        """Answers with the OpenAPI 3.1 document."""
        self.set_header("Content-Type", "application/json")
        self.finish((files(__package__) / "openapi.json").read_bytes())


class NotThere(Call):
    """Every other path."""

    async def prepare(self) -> None:
        """Raises 404, whatever the method, if the token is right."""
        await super().prepare()
        path = shown_value(self.request.path)
        raise CallError(404, f"there is nothing at {path}; see /api/v1/openapi.json")


def create_app(context: WebContext, *, token_needed: bool) -> web.Application:
    """The application with all calls of the API."""
    given = {"context": context, "token_needed": token_needed}
    routes: list[Any] = [
        (r"/api/v1/states/([^/]{1,4096})", OneState, given),
        (r"/api/v1/sessions", AllSessions, given),
        (r"/api/v1/sessions/([^/]{1,256})", OneSession, given),
        (r"/api/v1/explain", Explain, given),
        (r"/api/v1/openapi\.json", Description, given),
    ]
    return web.Application(
        routes,
        default_handler_class=NotThere,
        default_handler_args=given,
        log_function=lambda handler: None,
        serve_traceback=False,
    )


def _state(context: WebContext, token: str, **members: object) -> State:
    try:
        return context.states.read(token)
    except StateError as error:
        raise CallError(404, f"{error}; {_NEXT_STATE}", **members) from None


def _lifetime(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        wrong("lifetime", value, "is not a number of seconds, such as 3600")
    if not 1 <= value <= LONGEST:
        wrong("lifetime", value, f"is not 1 to {LONGEST} seconds")
    return float(value)


def _name(value: object) -> str | None:
    if value is not None and (
        not isinstance(value, str) or len(value) > 100 or _UNFIT.search(value)
    ):
        why = "is not a string of at most 100 characters without control characters"
        wrong("name", value, why)
    return value
