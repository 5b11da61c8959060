"""The API for a login server of the operator's own: who was refused, and to let them on.

On a unix socket, where the file's permission is the authority, or on loopback with bearer tokens;
never where clients are. JSON, errors as problem details (RFC 9457), described by `openapi.json`.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Never
from urllib.parse import quote

from tornado import httpserver, netutil, web

from capport.core.client import Address, Client, ClientId, parse_address, parse_client_id
from capport.core.place import Place
from capport.core.policy import Access
from capport.core.session import Session
from capport.portal.portal import Portal
from capport.portal.states import State, StateError

logger = logging.getLogger(__name__)

BY = "api"
LONGEST = 366 * 86400
"""Seconds a session may be granted for."""

MAX_BODY = 64 * 1024
"""Bytes of a call's body; a longer one is 413, and one beyond `_MAX_READ` is not read at all."""

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}")  # RFC 9110 section 5.6.2
_MAX_READ = 1024 * 1024
_REQUIRED, _LEFT_OUT = object(), object()
# What no list or log should be shown: control characters, line breaks, and half characters.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

type Grant = Callable[[Client | ClientId], Awaitable[Session]]


class NoPlace(OSError):
    """The API cannot listen at the address that `portal_api` gives, in one line that says why."""


class Problem(web.HTTPError):
    """An error that the caller can do something about."""

    def __init__(self, status: int, detail: str, **members: object) -> None:
        super().__init__(status)
        self.detail, self.members = detail, members


class Unauthorized(Problem):
    """401; `error` is RFC 6750's (section 3.1), None where no token came."""

    def __init__(self, detail: str, error: str | None = None) -> None:
        super().__init__(401, detail)
        self.challenge = f'Bearer error="{error}"' if error else "Bearer"


class Call(web.RequestHandler):
    """A call of the API. `token_needed`: whether the connection alone is no authority."""

    def initialize(self, portal: Portal, *, token_needed: bool) -> None:
        """Called by Tornado with what the route has."""
        self.portal, self.token_needed = portal, token_needed
        self.grants = portal.grants

    def set_default_headers(self) -> None:
        """Also called for an error."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def prepare(self) -> None:
        """Checks the token, where one is needed, and the size of the body."""
        if self.token_needed:
            await self._check_token()
        if len(self.request.body) > MAX_BODY:
            raise Problem(413, f"the body has more than {MAX_BODY} bytes")

    async def _check_token(self) -> None:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("a token is needed: capport token new")
        known = partial(self.portal.records.token_name, token_digest(token.strip()))
        if await self.portal.recorded(known) is None:
            why = "that token is not known here, or was replaced: capport token new"
            raise Unauthorized(why, error="invalid_token")

    def head(self, *arguments: str) -> Awaitable[None] | None:
        """As GET, where there is one (RFC 9110 section 9.1); Tornado leaves the body out."""
        return self.get(*arguments)

    def compute_etag(self) -> str | None:
        """None: nothing here is cached."""
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The error as problem details."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        problem: dict[str, object] = {"type": "about:blank"}  # the status says what it is
        problem |= {"title": self._reason, "status": status_code}
        if isinstance(error, Problem):
            problem |= {"detail": error.detail} | error.members
        elif isinstance(error, OSError):
            problem["detail"] = f"{error}; nothing was changed"
        if isinstance(error, Unauthorized):  # here, for what was set before is gone by now
            self.set_header("WWW-Authenticate", error.challenge)
        if status_code == 405:  # RFC 9110 section 15.5.6
            here = ", ".join(self._methods())
            self.set_header("Allow", here)
            problem["detail"] = f"{self.request.method} is not for this path: {here}"
        self.set_header("Content-Type", "application/problem+json")
        self.finish(json.dumps(problem) + "\n")

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's; what could not be made durable is 503."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(503 if isinstance(error, OSError) else status_code, **kwargs)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """A caller's errors are the caller's to log."""
        if not isinstance(value, web.HTTPError):
            logger.error("No answer; 500 or 503 instead", exc_info=(typ, value, tb))  # type: ignore[arg-type]

    def _methods(self) -> list[str]:
        there = [name for name in self.SUPPORTED_METHODS if name.lower() in vars(type(self))]
        return ["GET", "HEAD", *there[1:]] if there[:1] == ["GET"] else there

    def answer(self, said: object, status: int = 200) -> None:
        """`said` as JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(said) + "\n")

    def asked(self, **members: object) -> dict[str, Any]:
        """The JSON object that was sent, with no member but these; each has its default."""
        typed = self.request.headers.get("Content-Type", "")
        if typed.partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, f"Content-Type is {_shown(typed)}: send application/json")
        try:
            sent = json.loads(
                self.request.body, parse_constant=_no_constant, object_pairs_hook=_object
            )
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(sent, dict):
            raise Problem(422, f"the body is {_shown(sent)}: send an object")
        for name in sent:
            if name not in members:
                why = f"is not known here; known are {', '.join(members)}"
                raise Problem(422, f"{_shown(name)} {why}", member=name[:64])
        for name, default in members.items():
            if default is _REQUIRED and name not in sent:
                raise Problem(422, f"{name} is missing", member=name)
        return members | sent

    def told(self, session: Session) -> dict[str, object]:
        """A session, for the caller."""
        now = self.grants.now()
        return {
            "client": session.client,
            "granted": datetime.fromtimestamp(session.granted_at, UTC).isoformat(
                timespec="seconds"
            ),
            "seconds_remaining": session.seconds_remaining(now),
            "idle": session.idle,
            "by": session.by,
            "how": session.how,
            "name": session.name,
        }

    def shown(self, session: Session, status: int = 200) -> None:
        """A session that was asked for by what is not its path, which is told too."""
        self.set_header("Location", f"/api/v1/sessions/{quote(session.client, safe=':@')}")
        self.answer(self.told(session), status)

    def session_of(self, text: str) -> Session | None:
        """The open session of the client with this address, MAC or id."""
        client = self.client(text)
        try:
            # Its session may be filed under the MAC that the address has now.
            return self.grants.find(self.grants.client_at(parse_address(client)))
        except ValueError:
            return self.grants.find(client)

    def client(self, text: object, name: str = "client") -> ClientId:
        """The id in `text`."""
        if not isinstance(text, str):
            _wrong(name, text, "is not a string, such as 192.0.2.7")
        try:
            return parse_client_id(text)
        except ValueError:
            _wrong(name, text, "is no address and no MAC: 192.0.2.7 or 02:00:00:00:00:07")


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
            raise Problem(422, f"{_shown(unknown[0])} {why}", member=unknown[0][:64])
        given = self.get_query_arguments("address")
        if not given:
            return None
        try:
            [address] = map(parse_address, given)
        except ValueError:
            _wrong("address", ", ".join(given), "is not an address, such as 192.0.2.7")
        return address


class Sessions(Call):
    """`/sessions`: all of them, and one more."""

    def get(self) -> None:
        """Each open session."""
        now = self.grants.now()
        told = [self.told(one) for one in self.grants.sessions() if one.is_open(now)]
        self.answer({"sessions": told})

    async def post(self) -> None:
        """Lets a client on; answers when every enforcement point does so.

        By state or by client, not both. Sent again it does nothing more, and is answered alike.
        """
        asked = self.asked(state=_LEFT_OUT, client=_LEFT_OUT, lifetime=None, name=None)
        if (asked["state"] is _LEFT_OUT) == (asked["client"] is _LEFT_OUT):
            raise Problem(422, "state or client, one of the two, says who", member="state")
        lifetime, name = _lifetime(asked["lifetime"]), _name(asked["name"]) or ""
        if asked["client"] is not _LEFT_OUT:
            client = self.client(asked["client"])
            grant = partial(self.grants.grant, lifetime=lifetime, by=BY, how="", name=name)
            await self._grant(self._whole(client), grant)
            return
        async with self.portal.granting:
            await self._by_state(asked["state"], lifetime, name)

    async def _by_state(self, token: object, lifetime: float | None, name: str) -> None:
        if not isinstance(token, str):
            _wrong("state", token, "is not a string")
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
            grant = partial(self.grants.grant, lifetime=lifetime, by=BY, how="state", name=name)
            await self._grant(client, grant)
        except (OSError, Problem):
            await self.portal.recorded(partial(records.unspend, state.id))
            raise
        self.portal.states.spent(state)

    async def _grant(self, client: Client | ClientId, grant: Grant) -> None:
        if isinstance(client, Client):
            rule = self.grants.policy.clients.find(client)
            if rule is not None and rule.access is Access.BLOCKED:
                raise Problem(409, f"the policy blocks that client: {rule.where}")
        before = self.grants.find(client)
        session = await grant(client)
        self.shown(session, 200 if before else 201)

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
        session = await self.grants.grant(
            before.client,
            lifetime=left,
            by=BY,
            how=before.how,
            name=before.name if name is None else name,
        )
        self.answer(self.told(session))

    async def delete(self, text: str) -> None:
        """Ends it; answers when nothing of the client's passes any more."""
        await self.grants.revoke(self._there(text).client)
        self.set_status(204)

    def _there(self, text: str) -> Session:
        if (session := self.session_of(text)) is None:
            raise Problem(404, f"{text[:64]} has no session")
        return session


class Explain(Call):
    """`/explain`: the verdict on a request, each rule that was asked, and which one decided."""

    def post(self) -> None:
        """As `capport explain` has it; nothing is counted."""
        asked = self.asked(client=_REQUIRED, url=_REQUIRED, method="GET")
        for name in asked:
            if not isinstance(asked[name], str) or len(asked[name]) > 4096:
                _wrong(name, asked[name], "is not a string of at most 4096 characters")
        if not _METHOD.fullmatch(asked["method"]):
            _wrong("method", asked["method"], "is not a method, such as GET")
        try:
            address = parse_address(asked["client"])
        except ValueError:
            _wrong("client", asked["client"], "is not an address, such as 192.0.2.7")
        try:
            self.answer(
                self.grants.explain(self.grants.client_at(address), asked["url"], asked["method"])
            )
        except ValueError as error:
            raise Problem(422, f"url {str(error)[:200]}", member="url") from None


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
        path = _shown(self.request.path)
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


class BackChannel:
    """Listens on a unix socket, and on loopback if told to."""

    def __init__(self, portal: Portal, path: Path, place: Place | None = None) -> None:
        if place is not None and (isinstance(place.host, str) or not place.host.is_loopback):
            raise ValueError(f"{place} is not on loopback, where no client is")
        self.portal, self.path, self.place = portal, path, place
        self.port: int | None = None
        self._servers: list[httpserver.HTTPServer] = []
        self._file = 0

    def start(self) -> None:
        """Listens in the running event loop. Raises OSError; with EADDRINUSE, where another does.

        NoPlace where it is the address that cannot be had, which none of the same store's has then.
        The socket's file is for its owner, and for its group where the folder is for those two.
        """
        unix = self._bind()
        try:
            bound = _bind_at(self.place) if self.place is not None else []
        except NoPlace:
            unix.close()
            self._unlink()
            raise
        self._serve([unix], token_needed=False)
        if bound:
            self.port = bound[0].getsockname()[1]
            self._serve(bound, token_needed=True)

    @property
    def where(self) -> str:
        """Where it listens, for people: the socket's path, and the address where there is one."""
        if self.place is None or self.port is None:
            return str(self.path)
        return f"{self.path} and {Place(self.place.host, self.port)}"

    async def stop(self) -> None:
        """Ends every connection, and takes the socket's file away, if it is still ours."""
        for server in self._servers:
            server.stop()
            await server.close_all_connections()
        if self._servers:
            self._unlink()
        self._servers.clear()

    def _bind(self) -> socket.socket:
        with _alone(self.path.parent):
            if _answers(self.path):
                raise OSError(errno.EADDRINUSE, "another process answers there", str(self.path))
            try:
                bound = netutil.bind_unix_socket(str(self.path), mode=_mode(self.path.parent))
            except (OSError, ValueError) as error:
                number = error.errno if isinstance(error, OSError) else None
                raise OSError(number or errno.EINVAL, str(error), str(self.path)) from error
            self._file = self.path.stat().st_ino
        return bound

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._file:
                self.path.unlink()

    def _serve(self, sockets: list[socket.socket], *, token_needed: bool) -> None:
        server = httpserver.HTTPServer(
            create_app(self.portal, token_needed=token_needed),
            idle_connection_timeout=60.0,
            body_timeout=15.0,
            max_header_size=16 * 1024,
            max_body_size=_MAX_READ,
        )
        server.add_sockets(sockets)
        self._servers.append(server)


def _bind_at(place: Place) -> list[socket.socket]:
    try:
        return netutil.bind_sockets(place.port, str(place.host))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        why = "is in use" if in_use else f"cannot be listened on: {error.strerror or error}"
        raise NoPlace(f"portal_api: {place} {why}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """With no other process that looks and binds there meanwhile. Raises OSError, as for those."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OSError(errno.EADDRINUSE, "another process is at it", str(folder)) from error
    finally:
        os.close(opened)


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket at `path`: what a killed process left, nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # it listens, and has no room in its queue
        except OSError:
            return False
    return True


def _mode(folder: Path) -> int:
    """0660 in a folder that its group may use and others not: whom it lets in, it lets ask."""
    shared = stat.S_IMODE(folder.stat().st_mode) & 0o077
    return 0o660 if shared & 0o050 == 0o050 and not shared & 0o007 else 0o600


def new_token() -> str:
    """A bearer token, to be shown once and filed by its digest."""
    return f"capport_{secrets.token_urlsafe(32)}"


def token_digest(token: str) -> bytes:
    """What a token is filed under: 256 random bits need no slow hash."""
    return hashlib.sha256(b"token\0" + token.encode("utf-8", "surrogatepass")).digest()


# What would do, where a state does not.
_ANEW = "the link in the client's next 511 has a new one"


def _state(portal: Portal, token: str, **members: object) -> State:
    try:
        return portal.states.read(token)
    except StateError as error:
        raise Problem(404, f"{error}; {_ANEW}", **members) from None


def _lifetime(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        _wrong("lifetime", value, "is not a number of seconds, such as 3600")
    if not 1 <= value <= LONGEST:
        _wrong("lifetime", value, f"is not 1 to {LONGEST} seconds")
    return float(value)


def _name(value: object) -> str | None:
    if value is not None and (
        not isinstance(value, str) or len(value) > 100 or _UNFIT.search(value)
    ):
        why = "is not a string of at most 100 characters without control characters"
        _wrong("name", value, why)
    return value


def _wrong(member: str, value: object, why: str) -> Never:
    raise Problem(422, f"{member} {_shown(value)} {why}", member=member)


def _shown(value: object) -> str:
    """What was sent, as JSON has it, and no more than tells it apart."""
    said = json.dumps(value)
    return said if len(said) <= 80 else f"{said[:79]}…"


def _no_constant(text: str) -> Never:
    raise ValueError(f"{text} is not in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose members is there once: of two, who would say which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Problem(422, f"{_shown(twice)} is there more than once", member=twice[:64])
    return found
