"""Makes h11 and mitmproxy read HTTP/1 within bounds, with interim responses, without trailers.

Both libraries read whatever a peer sends, and some of their regular expressions take quadratic time
for it. So each head is checked first, in linear time: its size, the number of its fields, and its
characters. Chunked bodies are read here entirely, because h11 makes an object for each chunk, and
mitmproxy forwards each chunk separately.
"""

import contextlib
import functools
import re
from dataclasses import fields
from typing import Any, Final, cast

import h11
from h2.events import Event, InformationalResponseReceived
from h11 import _readers
from h11._receivebuffer import ReceiveBuffer, blank_line_regex
from mitmproxy import http
from mitmproxy.net.http import http1
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import HttpStream, _http1, _http2
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    ResponseHeaders,
    ResponseProtocolError,
)

from capport.core.cost import FIELDS, HEAD, LINE
from capport.core.http import TCHAR
from capport.core.reply import Asked, reply_to
from capport.core.verdict import HeaderFieldsTooLarge
from capport.log_limits import QUOTED
from capport.proxy.internals.http_events import HeadRefusedHook, RefusedHead
from capport.proxy.responses import bare, to_mitmproxy

INTERIM: Final = 100
"""The most interim responses to one request: with a 102 every 20 s, half an hour of them."""

# With one of these bytes, h11's expression for a field fails only after it has tried every way to
# divide the blanks between its parts.
_UNFIT: Final = re.compile(rb"[\0\v\f]|\r(?!\n)")
# mitmproxy's expression for the commas in a Transfer-Encoding takes quadratic time for many blanks.
# It quotes a bad Content-Length, or a line without a name, in full, and keeps the quote five times.
_TOO_LONG: Final = re.compile(
    rb"\n(?:(?:transfer-encoding|content-length)[ \t]*+:[^\n]{200}|[^:\s][^:\n]{200})",
    re.IGNORECASE,
)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,20}+)(?:;[^\r\n]*+|[ \t]*+)\r\n")

# Of a head that is too large to read. No more of them than core/negotiation.py reads.
_ACCEPT: Final = re.compile(rb"\naccept:([^\r\n]{0,1001})", re.IGNORECASE)
_ACCEPT_LANGUAGE: Final = re.compile(rb"\naccept-language:([^\r\n]{0,1001})", re.IGNORECASE)

# The beginning of a field, or of a line that continues one.
_TRAILER: Final = re.compile(rb"%b++:|[ \t]" % TCHAR.encode())


class Lines(ReceiveBuffer):
    """The buffer in which h11 and mitmproxy keep a head until it is complete, within bounds."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head; None until it is complete. Raises LocalProtocolError."""
        whole = blank_line_regex.search(self._data, self._multiple_lines_search, HEAD)
        end = whole.end() if whole else len(self)
        if not whole and end >= HEAD:
            raise h11.LocalProtocolError(f"a head has {HEAD} bytes or more", 431)
        if self._data.count(b"\n", 0, end) > FIELDS + 2:
            raise h11.LocalProtocolError(f"a head has more than {FIELDS} fields", 431)
        if (self._data.find(b"\n", 0, LINE) < 0) and end >= LINE:
            raise h11.LocalProtocolError(f"its first line has {LINE} bytes or more", 431)
        if whole:
            self.check(end)
        return super().maybe_extract_lines()

    def check(self, end: int) -> None:
        """Raises LocalProtocolError if mitmproxy could not read the head at bounded cost.

        The head is what the buffer contains up to `end`.
        """
        if found := _TOO_LONG.search(self._data, 0, end):
            shown = found[0][1:40].decode("latin-1")
            raise h11.LocalProtocolError(f"a name or a value is too long: {shown}")


class StrictLines(Lines):
    """The same buffer for h11's own reader."""

    def check(self, end: int) -> None:
        """Raises LocalProtocolError if h11 could not read the head in linear time."""
        if _UNFIT.search(self._data, 0, end):
            raise h11.LocalProtocolError("a head has a byte that no field may have")


class Chunks(_readers.ChunkedReader):
    """Reads a chunked body: returns the data of all chunks that have come at once, no trailers.

    mitmproxy raises an exception over trailers, and does not answer. A proxy may discard them (RFC
    9112 section 7.1.2).
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = 0  # bytes of the current chunk that are still to come
        self._due = b""  # must come before the next chunk: CRLF, or the rest of it
        self._last = False  # whether the last chunk, of 0 bytes, has come
        self._fault = ""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """The next part of the body; None until more has come. Raises LocalProtocolError."""
        data = bytearray()
        del buf._data[: self._read(buf._data, data)]
        if data:
            return h11.Data(data=bytes(data))
        if self._fault:  # only now, because the valid data before it has been returned
            raise h11.LocalProtocolError(self._fault)
        trailers = buf.maybe_extract_lines() if self._last else None
        if trailers is None:
            return None
        if not all(map(_TRAILER.match, trailers)):
            raise h11.LocalProtocolError("the trailers are not valid fields")
        return h11.EndOfMessage()

    def _read(self, have: bytearray, data: bytearray) -> int:
        """Copies the chunks' data from `have` to `data`; returns how many bytes it has read."""
        at, end = 0, len(have)
        while at < end and not self._last and not self._fault:
            if self._left:
                part = have[at : at + self._left]
                data += part
                at += len(part)
                self._left -= len(part)
                self._due = b"" if self._left else b"\r\n"
            elif self._due:
                part = have[at : at + len(self._due)]
                if not self._due.startswith(part):
                    self._fault = "a chunk is longer than its size says"
                at += len(part)
                self._due = self._due[len(part) :]
            elif line := _CHUNK.match(have, at):
                at = line.end()
                self._left = int(line[1], 16)
                self._last = not self._left
            elif have.find(b"\n", at) >= 0 or end - at >= HEAD:
                self._fault = "a chunk does not begin with its size"
            else:
                break
        return at


class Http1Server(_http1.Http1Server):
    """mitmproxy's end of an HTTP/1 connection to a client."""

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Sends as mitmproxy does; after an interim response, another response may follow."""
        yield from super().send(event)
        if is_interim(event):
            self.response = None

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Reads a head within bounds; ignores empty lines before it (RFC 9112 section 2.2)."""
        _prepare(self.buf, event)
        try:
            yield from super().read_headers(event)
        except h11.LocalProtocolError as error:
            reply = bare(error.error_status_hint)
            if reply.status == 431:
                method = "HEAD" if self.buf._data.startswith(b"HEAD ") else "GET"
                reply = reply_to(*too_large(str(error), method, self.buf._data))
            response = to_mitmproxy(reply)
            response.headers["connection"] = "close"
            yield HeadRefusedHook(RefusedHead(self.context.client, reply.status, str(error)))
            yield commands.SendData(self.conn, http1.assemble_response(response))
            yield commands.CloseConnection(self.conn)
            self.state = self.done


class Http1Client(_http1.Http1Client):
    """mitmproxy's end of an HTTP/1 connection to an origin."""

    interim = 0

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Reads a head within bounds, also the heads that follow an interim response."""
        _prepare(self.buf, event)
        if not self.request:
            del self.buf._data[QUOTED:]  # mitmproxy logs this data and closes the connection
        again = True
        while again:
            again = False
            try:
                for command in super().read_headers(event):
                    if isinstance(command, ReceiveHttp) and is_interim(command.event):
                        again = bool(self.buf)
                        self.interim += 1
                        if self.interim > INTERIM:
                            raise h11.LocalProtocolError(f"more than {INTERIM} interim responses")
                        yield command
                        break  # or mitmproxy would continue as after a final response
                    self.interim = 0
                    yield command
            except h11.LocalProtocolError as error:
                again = False
                yield commands.CloseConnection(self.conn)
                assert self.stream_id is not None
                code = ErrorCode.GENERIC_SERVER_ERROR
                yield ReceiveHttp(ResponseProtocolError(self.stream_id, str(error), code))


class Http2Client(_http2.Http2Client):
    """mitmproxy's end of an HTTP/2 connection to an origin."""

    interim = 0

    def handle_h2_event(self, event: Event) -> layer.CommandGenerator[bool]:
        """Handles an event as mitmproxy does, and also forwards interim responses."""
        if isinstance(event, InformationalResponseReceived) and self.interim < INTERIM:
            self.interim += 1
            with contextlib.suppress(ValueError):
                status, headers = _http2.parse_h2_response_headers(event.headers)
                response = http.Response.make(status)
                response.http_version, response.headers = "HTTP/2.0", headers
                yield ReceiveHttp(ResponseHeaders(event.stream_id, response, end_stream=False))
            return False
        return (yield from super().handle_h2_event(event))


def is_interim(event: HttpEvent) -> bool:
    """Whether a response is an interim one, which another follows (RFC 9110 section 15.2)."""
    if not isinstance(event, ResponseHeaders):
        return False
    return 100 <= event.response.status_code < 200 and event.response.status_code != 101


_wait: Final = HttpStream.state_wait_for_response_headers


@functools.wraps(_wait)
def _forward_interim(stream: HttpStream, event: ResponseHeaders) -> layer.CommandGenerator[None]:
    """Waits for the final response, and forwards interim ones to the client.

    It drops a 100, because the proxy sends its own to a client that expects one. It forwards none
    to a client that speaks HTTP/1.0.
    """
    if not is_interim(event):
        yield from _wait(stream, event)
    elif event.response.status_code != 100 and stream.flow.request.http_version != "HTTP/1.0":
        with contextlib.suppress(ValueError):
            validate_headers(event.response)
            yield http_layers.SendHttp(event, stream.context.client)


def _prepare(buf: ReceiveBuffer, event: events.ConnectionEvent) -> None:
    """Removes empty lines before a head; at the end of a connection, what is too long to log."""
    if isinstance(event, events.ConnectionClosed):
        del buf._data[QUOTED:]
    elif buf._data.startswith((b"\r", b"\n")):
        del buf._data[: len(buf) - len(buf._data.lstrip(b"\r\n"))]


def reader() -> h11.Connection:
    """Makes h11's reader for an unknown client's requests."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
    parser._receive_buffer = StrictLines()
    return parser


def refused_method(parser: h11.Connection) -> bytes:
    """Returns HEAD if `parser` refused a HEAD request as too large to read; else nothing.

    h11 sends no body in the answer to HEAD. It knows the method by `_request_method`, which it sets
    when it has read a whole head; so this sets it.
    """
    if not parser.trailing_data[0].startswith(b"HEAD "):
        return b""
    parser._request_method = b"HEAD"
    return b"HEAD"


def too_large(why: str, method: str, head: bytes | bytearray) -> tuple[HeaderFieldsTooLarge, Asked]:
    """The verdict on a head that is too large to read, and what its reply depends on."""
    accept, language = (
        found[1].decode("latin-1") if (found := preference.search(head, 0, HEAD)) else ""
        for preference in (_ACCEPT, _ACCEPT_LANGUAGE)
    )
    return HeaderFieldsTooLarge(why, _large_field(head)), Asked(method, accept, language)


def _large_field(head: bytes | bytearray) -> str | None:
    """The name of the field that takes more than half of a head that is too large."""
    _, *fields = head[:HEAD].split(b"\n")
    largest = max(fields, key=len, default=b"")
    if len(largest) <= HEAD // 2:
        return None
    return bytes(largest.partition(b":")[0]).decode("latin-1").lower()


_check: Final = http.MessageData.__post_init__


@functools.wraps(_check)
def _check_types(message: http.MessageData) -> None:
    """Checks the types of a message's fields as mitmproxy does, but raises nothing to try a type.

    mitmproxy catches a TypeError for each field that is None. The error and the frame that raised
    it refer to each other, and to every caller. So all that was read stays in memory until the next
    garbage collection.
    """
    if not all(isinstance(getattr(message, it.name), cast(Any, it.type)) for it in fields(message)):
        _check(message)


def install() -> None:
    """Makes mitmproxy and h11 use the classes of this module from now on."""
    readers: dict[object, Any] = _readers.READERS  # type: ignore[assignment]
    readers[h11.SEND_BODY]["chunked"] = Chunks
    for module, ours in (
        (_http1, {"ChunkedReader": Chunks, "ReceiveBuffer": Lines}),
        (http_layers, {it.__name__: it for it in (Http1Server, Http1Client, Http2Client)}),
        (HttpStream, {"state_wait_for_response_headers": _forward_interim}),
        (http.MessageData, {"__post_init__": _check_types}),
    ):
        for name, replacement in ours.items():
            setattr(module, name, replacement)
