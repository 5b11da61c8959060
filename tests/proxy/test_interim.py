"""Interim responses (RFC 9110 section 15.2): a response that another follows is not the answer."""

from typing import cast
from unittest.mock import Mock

import h2.config
import h2.connection
import pytest
from mitmproxy import http, options
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.proxy import commands, context, events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseHeaders
from mitmproxy.test import tflow

from capport.proxy.internals.http1_reader import Http2Client
from conftest import Origin, Portal, StartPortal
from proxy.wire import GARDEN, garden, with_names

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

WAYS = {
    "known, streamed": KNOWN,
    "known, inspected": f"{KNOWN}http: {{known: inspect}}\n",
    "the garden's": "",
}


async def asked(it: Portal, origin: Origin, version: str = "1.1") -> bytes:
    """All that comes back for one request, until the portal closes."""
    place = f"{GARDEN}:{origin.port}"
    head = f"GET http://{place}/ HTTP/{version}\r\nHost: {place}\r\nConnection: close\r\n\r\n"
    return await it.talk(head.encode())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (HINTS + FINAL, [b"103", b"200"]),
        (PROCESSING + HINTS + HINTS + FINAL, [b"102", b"103", b"103", b"200"]),
        (CONTINUE + FINAL, [b"200"]),  # the proxy itself sends it if one is expected
        (b"HTTP/1.1 199 \r\nLink: a\r\n\r\n" + FINAL, [b"199", b"200"]),
        (PROCESSING * 1000 + FINAL, [b"102"] * 100),
        (HINTS, [b"103", b"502"]),  # and no more
    ],
)
async def test_an_interim_response_is_forwarded_and_the_final_one_too(
    portal: StartPortal, origin: Origin, way: str, sent: bytes, statuses: list[bytes]
) -> None:
    origin.answer = sent
    origin.closes = sent is HINTS
    async with portal(WAYS[way] or garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it, GARDEN)
        got = await asked(it, origin)
    found = [part.split(b" ")[0] for part in got.split(b"HTTP/1.1 ")[1:]]
    assert found[: len(statuses)] == statuses
    assert (b"</a.css>" in got) == (b"103" in statuses)
    if statuses[-1] == b"200":
        assert got.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("way", WAYS)
async def test_http_1_0_gets_no_interim_response(
    portal: StartPortal, origin: Origin, way: str
) -> None:
    origin.answer = HINTS + FINAL
    async with portal(WAYS[way] or garden(f"{GARDEN}:{origin.port}")) as it:
        with_names(it, GARDEN)
        got = await asked(it, origin, "1.0")
    assert b" 103 " not in got
    assert got.endswith(b"\r\n\r\nok")


def test_an_interim_response_of_an_http2_origin_is_passed_on() -> None:
    opts = options.Options()
    Proxyserver().load(Loader(cast(Master, Mock(options=opts))))
    ctx = context.Context(tflow.tclient_conn(), opts)
    ctx.server = tflow.tserver_conn()
    ours = Http2Client(ctx)
    request = http.Request.make("GET", "https://www.example.org/")
    request.authority = "www.example.org"
    origin = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    sent = [
        *ours.handle_event(events.Start()),
        *ours.handle_event(RequestHeaders(1, request, end_stream=True)),
    ]
    origin.receive_data(b"".join(it.data for it in sent if isinstance(it, commands.SendData)))
    origin.send_headers(1, [(":status", "103"), ("link", "</a.css>")])
    origin.send_headers(1, [(":status", "200")], end_stream=True)
    came = ours.handle_event(events.DataReceived(ctx.server, origin.data_to_send()))
    heads = [it.event for it in came if isinstance(it, ReceiveHttp)]
    responses = [it.response for it in heads if isinstance(it, ResponseHeaders)]
    assert [it.status_code for it in responses] == [103, 200]
    assert responses[0].headers["link"] == "</a.css>"
