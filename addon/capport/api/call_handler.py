"""What all calls of the API for the operator's own login server have in common.

Each call checks the token, reads JSON, and answers errors as problem details (RFC 9457), which name
the wrong member and say what to send instead.
"""

import json
from collections import Counter
from functools import partial
from typing import Any, Never
from urllib.parse import quote

from tornado import web

from capport.api.tokens import token_digest
from capport.core.client import ClientId, Peer, parse_client_id, parts_of
from capport.core.session import Session
from capport.session_view import document
from capport.web.base_handler import BaseHandler
from capport.web.context import WebContext

MAX_BODY = 64 * 1024
"""Bytes that the body of a call may have; a longer one is answered 413."""

REQUIRED, LEFT_OUT = object(), object()
"""Defaults for a member: REQUIRED if it must be sent; LEFT_OUT shows that it was not sent."""


class CallError(web.HTTPError):
    """An error that the caller can correct."""

    def __init__(self, status: int, detail: str, **members: object) -> None:
        super().__init__(status)
        self.detail, self.members = detail, members


class Unauthorized(CallError):
    """401. `error` is a code of RFC 6750 section 3.1, or None if the call has no token."""

    def __init__(self, detail: str, error: str | None = None) -> None:
        super().__init__(401, detail)
        self.challenge = f'Bearer error="{error}"' if error else "Bearer"


class Call(BaseHandler):
    """A call of the API. `token_needed` is set on loopback, where any process can connect."""

    def initialize(self, context: WebContext, *, token_needed: bool) -> None:
        """Tornado calls it with the arguments of the route."""
        self.context, self.token_needed = context, token_needed
        self.gate, self.grants = context.gate, context.grants

    async def prepare(self) -> None:
        """Checks the token, if one is needed, and the size of the body."""
        if self.token_needed:
            await self._check_token()
        if len(self.request.body) > MAX_BODY:
            raise CallError(413, f"the body has more than {MAX_BODY} bytes")

    async def _check_token(self) -> None:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("a token is needed: make one with capport token new")
        known = partial(self.context.records.token_name, token_digest(token.strip()))
        if await self.context.recorded(known) is None:
            why = "that token is not known, or was replaced: make one with capport token new"
            raise Unauthorized(why, error="invalid_token")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answers the error as problem details."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        problem: dict[str, object] = {"type": "about:blank"}  # RFC 9457: see the status
        problem |= {"title": self._reason, "status": status_code}
        if isinstance(error, CallError):
            problem |= {"detail": error.detail} | error.members
        elif isinstance(error, OSError):
            # A revocation takes effect even if it could not be made durable.
            changed = "" if self.request.method == "DELETE" else "; nothing was changed"
            problem["detail"] = f"{error}{changed}"
        self.say_when(error)
        if isinstance(error, Unauthorized):  # not earlier, because Tornado clears the headers
            self.set_header("WWW-Authenticate", error.challenge)
        if status_code == 405:  # RFC 9110 section 15.5.6
            allowed = ", ".join(self.methods())
            self.set_header("Allow", allowed)
            problem["detail"] = f"{self.request.method} is not for this path: use {allowed}"
        self.set_header("Content-Type", "application/problem+json")
        self.finish(json.dumps(problem) + "\n")

    def answer(self, said: object, status: int = 200) -> None:
        """Answers with `said` as JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(said) + "\n")

    def read_members(self, **members: object) -> dict[str, Any]:
        """The members of the JSON object in the body. `members`: the known ones, with defaults."""
        typed = self.request.headers.get("Content-Type", "")
        if typed.partition(";")[0].strip().lower() != "application/json":
            raise CallError(415, f"Content-Type is {shown_value(typed)}: send application/json")
        try:
            sent = json.loads(
                self.request.body, parse_constant=_no_constant, object_pairs_hook=_object
            )
        except (ValueError, RecursionError) as error:
            raise CallError(400, f"the body is not JSON: {error}") from None
        if not isinstance(sent, dict):
            raise CallError(422, f"the body is {shown_value(sent)}: send an object")
        for name in sent:
            if name not in members:
                why = f"is not known; known are {', '.join(members)}"
                raise CallError(422, f"{shown_value(name)} {why}", member=name[:64])
        for name, default in members.items():
            if default is REQUIRED and name not in sent:
                raise CallError(422, f"{name} is missing", member=name)
        return members | sent

    def describe(self, session: Session) -> dict[str, object]:
        """A session as `capport clients --json` prints it."""
        return document(session, self.gate.now(), self.context.wall())

    def answer_granted(self, session: Session, status: int = 200) -> None:
        """Answers with a session that was granted or changed, and its path in Location.

        If Redis is away, it says that the session is in force on this router alone.
        """
        self.set_header("Location", f"/api/v1/sessions/{quote(session.client, safe=':@')}")
        fault = self.gate.not_everywhere
        said = {} if fault is None else {"not_everywhere": fault}
        self.answer(self.describe(session) | said, status)

    def session_of(self, client: ClientId) -> Session | None:
        """The open session of the client with this address, MAC or id."""
        mac, address = parts_of(client)
        # The session may be filed under the MAC that the address has now.
        present = client if mac or address is None else self.gate.client(Peer(address))
        return self.grants.find(present) or next(iter(self.gate.sessions_of(client)), None)

    def client(self, text: object, name: str = "client") -> ClientId:
        """The client id that `text` spells. Raises CallError."""
        if not isinstance(text, str):
            wrong(name, text, "is not a string, such as 192.0.2.7")
        try:
            return parse_client_id(text)
        except ValueError:
            wrong(name, text, "is neither an address nor a MAC: 192.0.2.7 or 02:00:00:00:00:07")


def wrong(member: str, value: object, why: str) -> Never:
    """Raises a CallError with 422 for the value of a member."""
    raise CallError(422, f"{member} {shown_value(value)} {why}", member=member)


def shown_value(value: object) -> str:
    """The value that was sent, as JSON, cut to 80 characters."""
    said = json.dumps(value)
    return said if len(said) <= 80 else f"{said[:79]}…"


def _no_constant(text: str) -> Never:
    raise ValueError(f"{text} is not in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these members. Raises CallError for one that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CallError(422, f"{shown_value(twice)} is there more than once", member=twice[:64])
    return found
