"""What the API for login servers of others can be asked: states, sessions, why, and itself."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

from tornado import web

from capport.api.call_handler import LEFT_OUT, REQUIRED, Call, Problem, shown_value, wrong
from capport.core.client import Address, Client, ClientId, parse_address, parse_mac, parts_of
from capport.core.http import is_token
from capport.core.session import LONGEST, Session, open_ones
from capport.core.standing import Standing, standing_of_id
from capport.web.context import Portal
from capport.web.states import State, StateError

BY = "api"

_LONGEST_METHOD = 20
# What no list or log should be shown: control characters, line breaks, and half characters.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Which member of a grant says for whom; one of them.
_WHO = ("state", "client", "address", "mac")
# What would do, where a state does not.
_ANEW = "the link in the client's next 511 has a new one"

type Grant = Callable[[], Awaitable[Session]]


class States(Call):
    """`/states/{state}`: who was refused, and on the way to which page."""

    async def get(self, token: str) -> None:
        """What the state says; 404 where it says nothing, or nothing any more.

        409 where it is asked with `address`, and that is another client's: who sends others a link
        of its own would have them sign in for it. By MAC, where there is one: a device asks for its
        page over IPv6, and meets the login server over IPv4.
        """
        state, address = _state(self.portal, token), self._address()
        if address is not None and not state.is_of(self.grants.client_at(address)):
            raise Problem(409, f"{address} is not who was refused; {_ANEW}")
        spent = await self.portal.recorded(partial(self.portal.records.spent_by, state.id))
        self.answer(
            {
                "client": {"address": str(state.client.address), "mac": state.client.mac},
                "page": state.page,
                "network": self.grants.policy.network,
                "seconds_remaining": max(0, int(state.expires - self.grants.now())),
                "spent": spent is not None,
            }
        )

    def _address(self) -> Address | None:
        if unknown := [name for name in self.request.query_arguments if name != "address"]:
            why = "is not known here; known is address"
            raise Problem(422, f"{shown_value(unknown[0])} {why}", member=unknown[0][:64])
        given = self.get_query_arguments("address")
        if not given:
            return None
        try:
            [address] = map(parse_address, given)
        except ValueError:
            wrong("address", ", ".join(given), "is not an address, such as 192.0.2.7")
        return address


class Sessions(Call):
    """`/sessions`: all of them, and one more."""

    def get(self) -> None:
        """Each open session."""
        now = self.grants.now()
        told = [self.told(one) for one in open_ones(self.grants.sessions(), now)]
        self.answer({"sessions": told})

    async def post(self) -> None:
        """Lets a client on; answers when every enforcement point does so.

        By state, or by who it is, not both. A state sent again does nothing more.
        """
        asked = self.asked(**dict.fromkeys(_WHO, LEFT_OUT), lifetime=None, name=None)
        who = [name for name in _WHO if asked[name] is not LEFT_OUT]
        if len(who) != 1:
            raise Problem(422, f"one of {', '.join(_WHO)} says who", member=(who or _WHO)[0])
        lifetime, name = _lifetime(asked["lifetime"]), _name(asked["name"]) or ""
        if who != ["state"]:
            client = self._whole(self._named(who[0], asked[who[0]]))
            # It need not be there yet, or not with a MAC: then the session is for its address.
            under = client.id if isinstance(client, Client) else client
            grant = partial(self.grants.grant, under, lifetime=lifetime, by=BY, how="", name=name)
            await self._grant(client, grant)
            return
        async with self.portal.granting:
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
        state = _state(self.portal, token, member="state")
        client = self.grants.client_at(state.client.address)
        if state.client.mac is not None and client.mac != state.client.mac:
            raise Problem(409, f"another device has {client.address} now; {_ANEW}")
        records = self.portal.records
        spend = partial(records.spend, state.id, client.id, self.portal.boot, state.expires)
        if (spent_by := await self.portal.recorded(spend)) is not None:
            session = self.grants.find(spent_by)
            if session is None:
                raise Problem(410, f"that state was used, and its session is over; {_ANEW}")
            self.shown(session)
            return
        try:
            of = partial(self.grants.grant, client, by=BY, how="state")
            await self._grant(client, partial(of, lifetime=lifetime, name=name))
        except (OSError, Problem):
            await self.portal.recorded(partial(records.unspend, state.id))
            raise
        self.portal.states.spent(state)

    async def _grant(self, client: Client | ClientId, grant: Grant) -> None:
        if (barred := self._standing(client)).is_blocked:
            raise Problem(409, f"a session would change nothing: that client {barred.because}")
        before = self.grants.find(client)
        session = await grant()
        self.shown(session, 200 if before else 201)

    def _standing(self, client: Client | ClientId) -> Standing:
        if isinstance(client, Client):
            return self.grants.standing(client)
        return standing_of_id(client, self.grants.policy, None, self.grants.now())

    def _whole(self, client: ClientId) -> Client | ClientId:
        try:
            return self.grants.client_at(parse_address(client))
        except ValueError:
            return client


class OneSession(Call):
    """`/sessions/{client}`: a client's, by its address, its MAC, or what its session is under."""

    def get(self, text: str) -> None:
        """The session."""
        self.answer(self.told(self._there(text)))

    async def patch(self, text: str) -> None:
        """Changes how long it lasts, counted from now, or whom it is for."""
        asked = self.asked(lifetime=None, name=None)
        lifetime, name = _lifetime(asked["lifetime"]), _name(asked["name"])
        before = self._there(text)
        left = before.expires - self.grants.now() if lifetime is None else lifetime
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
            raise Problem(404, f"{text[:64]} has no session any more") from None
        self.answer(self.told(session))

    async def delete(self, text: str) -> None:
        """Ends each of the client's; answers when nothing of it passes any more."""
        self._there(text)
        sessions = self.grants.sessions_of(self.client(text))
        await self.grants.revoke(*(session.client for session in sessions))
        self.set_status(204)

    def _there(self, text: str) -> Session:
        if (session := self.session_of(self.client(text))) is None:
            raise Problem(404, f"{text[:64]} has no session")
        return session


class Explain(Call):
    """`/explain`: the verdict on a request, each rule that was asked, and which one decided."""

    def post(self) -> None:
        """As `capport explain` has it; nothing is counted."""
        asked = self.asked(client=REQUIRED, mac=LEFT_OUT, url=REQUIRED, method="GET")
        said = {name: value for name, value in asked.items() if value is not LEFT_OUT}
        for name, value in said.items():
            if not isinstance(value, str) or len(value) > 4096:
                wrong(name, value, "is not a string of at most 4096 characters")
        if not is_token(said["method"]) or len(said["method"]) > _LONGEST_METHOD:
            wrong("method", said["method"], "is not a method, such as GET")
        client = self._asking(**said)
        try:
            self.answer(self.grants.explain(client, said["url"], said["method"]))
        except ValueError as error:
            raise Problem(422, f"url {str(error)[:200]}", member="url") from None

    def _asking(self, client: str, mac: str | None = None, **_: str) -> Client:
        try:
            asking = self.grants.client_at(parse_address(client))
        except ValueError:
            wrong("client", client, "is not an address, such as 192.0.2.7")
        try:
            return asking if mac is None else replace(asking, mac=parse_mac(mac))
        except ValueError:
            wrong("mac", mac, "is not a MAC, such as 02:00:00:00:00:07")


class Description(Call):
    """`/openapi.json`: this API, described."""

    def get(self) -> None:
        """OpenAPI 3.1."""
        self.set_header("Content-Type", "application/json")
        self.finish((files(__package__) / "openapi.json").read_bytes())


class NotThere(Call):
    """Every other path."""

    async def prepare(self) -> None:
        """404, whatever the method, for whom has a token."""
        await super().prepare()
        path = shown_value(self.request.path)
        raise Problem(404, f"there is nothing at {path}; see /api/v1/openapi.json")


def create_app(portal: Portal, *, token_needed: bool) -> web.Application:
    """The API."""
    given = {"portal": portal, "token_needed": token_needed}
    routes: list[Any] = [
        (r"/api/v1/states/([^/]{1,4096})", States, given),
        (r"/api/v1/sessions", Sessions, given),
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


def _state(portal: Portal, token: str, **members: object) -> State:
    try:
        return portal.states.read(token)
    except StateError as error:
        raise Problem(404, f"{error}; {_ANEW}", **members) from None


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
