"""Names the events and hooks of mitmproxy's private HTTP modules, and adds one hook."""

from dataclasses import dataclass

from mitmproxy import connection
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers import http
from mitmproxy.proxy.layers.http import _events, _hooks

HttpConnectHook = _hooks.HttpConnectHook
HttpRequestHeadersHook = _hooks.HttpRequestHeadersHook
HttpRequestHook = _hooks.HttpRequestHook
HttpResponseHeadersHook = _hooks.HttpResponseHeadersHook
HttpResponseHook = _hooks.HttpResponseHook
RequestHeaders = _events.RequestHeaders
RequestTrailers = _events.RequestTrailers
ResponseData = _events.ResponseData
ResponseEndOfMessage = _events.ResponseEndOfMessage
ResponseHeaders = _events.ResponseHeaders
ResponseProtocolError = _events.ResponseProtocolError
ResponseTrailers = _events.ResponseTrailers
SendHttp = http.SendHttp


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
