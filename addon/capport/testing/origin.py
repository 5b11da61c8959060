"""The servers beside a portal in tests: an origin for every name, and the sign-in page."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tornado import httpserver, web

from capport.testing.authority import Authority

_SIGN_IN = """\
<!DOCTYPE html>
<html lang="en"><head><title>Sign in</title></head>
<body><h1>{heading}</h1><form method="post"><button>Sign in</button></form></body></html>
"""


@dataclass(frozen=True, slots=True)
class OriginAnswer:
    """What the origin answers at a path. After `hold_after` bytes of the body it waits."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hold_after: int | None = None


class Origin:
    """Answers every request for every name, in plain HTTP and in TLS."""

    def __init__(self, authority: Authority) -> None:
        self.answers: dict[str, OriginAnswer] = {}
        handler = web.Application([(r".*", _Any, {"answers": self.answers})])
        self.http_port = _listen(httpserver.HTTPServer(handler))
        context = authority.context_for("origin.test")
        context.sni_callback = authority.choose
        self.https_port = _listen(httpserver.HTTPServer(handler, ssl_options=context))

    def port(self, dialled: int) -> int:
        """Where a connection to `dialled` of any name is to go."""
        return self.https_port if dialled in (443, 8443) else self.http_port


def serve_sign_in(host: str, grant: Callable[[], Awaitable[None]]) -> int:
    """Serves the page that a 511 links to, whose button calls `grant`. Returns its port."""
    application = web.Application([(r".*", _SignIn, {"grant": grant})])
    return _listen(httpserver.HTTPServer(application), host)


class _Any(web.RequestHandler):
    SUPPORTED_METHODS = (*web.RequestHandler.SUPPORTED_METHODS, "PROPFIND", "REPORT")

    def initialize(self, answers: dict[str, OriginAnswer]) -> None:
        self._answers = answers
        self._gone = asyncio.Event()

    def on_connection_close(self) -> None:
        self._gone.set()

    def check_xsrf_cookie(self) -> None:
        """Accepts every method, because programs send these requests."""

    async def _answer(self) -> None:
        request = self.request
        said = {"method": request.method, "host": request.host, "path": request.path}
        default = OriginAnswer(
            json.dumps(said).encode(), headers=(("Content-Type", "application/json"),)
        )
        answer = self._answers.get(request.path, default)
        self.set_status(answer.status)
        self.clear_header("Content-Type")
        for name, value in answer.headers:
            self.add_header(name, value)
        self.set_header("Content-Length", str(len(answer.body)))
        if request.method == "HEAD":
            return
        self.write(answer.body[: answer.hold_after])
        if answer.hold_after is not None:
            await self.flush()
            await self._gone.wait()

    get = head = post = put = patch = delete = options = propfind = report = _answer


class _SignIn(web.RequestHandler):
    def initialize(self, grant: Callable[[], Awaitable[None]]) -> None:
        self._grant = grant

    def get(self) -> None:
        self.finish(_SIGN_IN.format(heading="Sign in to the test network"))

    head = get

    async def post(self) -> None:
        await self._grant()
        self.finish(_SIGN_IN.format(heading="You are signed in"))


def _listen(server: httpserver.HTTPServer, host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family, backlog=512)
    listening.setblocking(False)
    server.add_socket(listening)
    port: int = listening.getsockname()[1]
    return port
