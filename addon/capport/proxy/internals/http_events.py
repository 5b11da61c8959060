"""Names the events and hooks of mitmproxy's private HTTP modules, and adds one hook."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mitmproxy import connection
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http import _events, _hooks

type HookClasses = tuple[Callable[[HTTPFlow], commands.StartHook], ...]

messages = _events
SendHttp = http.SendHttp

OF_CONNECT: Final[HookClasses] = (_hooks.HttpConnectHook,)
OF_AN_ANSWER: Final[HookClasses] = (
    _hooks.HttpRequestHeadersHook,
    _hooks.HttpRequestHook,
    _hooks.HttpResponseHeadersHook,
    _hooks.HttpResponseHook,
)
"""The hooks of a request that is answered in the origin's place, in this order."""


@dataclass(frozen=True, slots=True)
class RefusedHead:
    """A client's head that mitmproxy has not read, because it is too large or invalid.

    Over HTTP/2 it has no status: the connection ends with GOAWAY.
    """

    client: connection.Client
    status: int | None
    why: str


@dataclass
class HeadRefusedHook(commands.StartHook):
    """Calls `head_refused`. mitmproxy gives a hook one argument."""

    head: RefusedHead
