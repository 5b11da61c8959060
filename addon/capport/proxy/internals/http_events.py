"""The events and hooks of mitmproxy's HTTP layers, which it defines in private modules."""

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
