"""Ways past a portal that have been tried: what is sent, and how it is varied.

ORIGIN stands for the place that must not be reached, GARDEN for one that may be.
"""

from hypothesis import strategies as st

# Each with the statuses of its answers; no part of it may be forwarded.
ODD: dict[str, tuple[bytes, list[int]]] = {
    "options *": (b"OPTIONS * HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute": (b"GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, another Host": (b"GET http://ORIGIN/ HTTP/1.1\r\nHost: example.net\r\n\r\n", [511]),
    "absolute with userinfo": (b"GET http://u:p@ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute https": (b"GET https://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute ws": (b"GET ws://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute ftp": (b"GET ftp://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, upper case": (b"GET HTTP://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, no path": (b"GET http://ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, query at once": (b"GET http://ORIGIN?a HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, backslash": (b"GET http://ORIGIN\\@x/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "absolute, empty authority": (b"GET http:/// HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "no scheme": (b"GET //ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "no slash": (b"GET ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "lower-case connect, absolute": (
        b"connect http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        [511],
    ),
    "lower-case connect": (b"connect ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [511]),
    "websocket": (
        b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        [511],
    ),
    "h2c upgrade": (
        b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        [511],
    ),
    "h2c prior knowledge, almost": (b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", [511, 400]),
    "http/0.9": (b"GET /\r\n\r\n", [400]),
    "http/0.9, bare LF": (b"GET /\n\n", [400]),
    "http/3.0": (b"GET / HTTP/3.0\r\nHost: ORIGIN\r\n\r\n", [511]),
    "http/1.2": (b"GET / HTTP/1.2\r\nHost: ORIGIN\r\n\r\n", [511]),
    "http/11.1": (b"GET / HTTP/11.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "lower-case http": (b"GET / http/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "icy": (b"GET / ICY/1.0\r\nHost: ORIGIN\r\n\r\n", [400]),
    "bare LF": (b"GET / HTTP/1.1\nHost: ORIGIN\n\n", [511]),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: ORIGIN\rX: y\r\n\r\n", [400]),
    "bare CR for an end": (b"GET / HTTP/1.1\rHost: ORIGIN\r\r", []),
    "NUL": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nX: a\x00b\r\n\r\n", [400]),
    "NUL in the Host": (b"GET / HTTP/1.1\r\nHost: ORI\x00GIN\r\n\r\n", [400]),
    "NUL in the target": (b"GET /\x00 HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "a control character": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nX: a\x01b\r\n\r\n", [511]),
    "obs-fold": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nX: a\r\n b\r\n\r\n", [511]),
    "obs-fold in the Host": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n example.net\r\n\r\n", [511]),
    "obs-fold at once": (b"GET / HTTP/1.1\r\n Host: ORIGIN\r\n\r\n", [400]),
    "0xFF in the Host": (b"GET / HTTP/1.1\r\nHost: \xff.example.net\r\n\r\n", [511]),
    "0xFF in the target": (b"GET /\xff HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : ORIGIN\r\n\r\n", [400]),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "a tab": (b"GET\t/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "a leading space": (b" GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", [400]),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nHost: example.net\r\n\r\n", [400]),
    "two equal Hosts": (b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nhost: ORIGIN\r\n\r\n", [400]),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", [400]),
    "no Host in 1.0": (b"GET / HTTP/1.0\r\n\r\n", [511]),
    "an empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", [511]),
    "Host with userinfo": (b"GET / HTTP/1.1\r\nHost: a@ORIGIN\r\n\r\n", [511]),
    "Host with brackets": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", [511]),
    "Host with half a bracket": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", [511]),
    "Host with a trailing dot": (b"GET / HTTP/1.1\r\nHost: example.net.\r\n\r\n", [511]),
    "Host in upper case": (b"GET / HTTP/1.1\r\nHost: EXAMPLE.NET\r\n\r\n", [511]),
    "Host with a U-label": ("GET / HTTP/1.1\r\nHost: bücher.example\r\n\r\n".encode(), [511]),
    "Host with a URL": (b"GET / HTTP/1.1\r\nHost: http://ORIGIN/\r\n\r\n", [511]),
    "Host with port 0": (b"GET / HTTP/1.1\r\nHost: example.net:0\r\n\r\n", [511]),
    "Host with port 99999": (b"GET / HTTP/1.1\r\nHost: example.net:99999\r\n\r\n", [511]),
    "TE and CL": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        [400],
    ),
    "TE in 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400]),
    "two CLs": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        [400],
    ),
    "a list of CLs": (b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 2, 3\r\n\r\nab", [400]),
    "CL +5": (b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: +5\r\n\r\nabcde", [400]),
    "CL of 5000 digits": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5000),
        [400],
    ),
    "TE: gzip": (b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: gzip\r\n\r\n", [400]),
    "TE: gzip, chunked": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        [400],
    ),
    "TE with a tab": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        [400],
    ),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
        b"1\r\na\r\n0\r\nX: y\r\n\r\n",
        [511],
    ),
    "trailers after nothing": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
        [511],
    ),
    "chunk extensions": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'1;a=b;c="d"\r\na\r\n0\r\n\r\n',
        [511],
    ),
    "a huge chunk": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"FFFFFFFFFFFFFFFFFFFF\r\n" + b"a" * 10_000,
        [511],
    ),
    "a chunk beyond all numbers": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"F" * 30
        + b"\r\na",
        [400],
    ),
    "a chunk of no number": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n",
        [400],
    ),
    "a short body": (b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 9\r\n\r\nab", [511]),
    "a request in a body": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 3\r\n\r\nabc"
        b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        [511],
    ),
    "Expect": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        [511],
    ),
    "Expect of something else": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 9\r\nExpect: 42\r\n\r\n",
        [511],
    ),
    "HEAD with a bad chunk": (
        b"HEAD / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        [400],
    ),
    "HEAD with TE and CL": (
        b"HEAD / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n"
        b"\r\n0\r\n\r\n",
        [400],
    ),
    "an unknown option": (
        b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nConnection: content-length, host\r\n"
        b"Content-Length: 1\r\n\r\na",
        [511],
    ),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n", []),
    "smtp": (b"EHLO client.example.com\r\n", []),
    "smtp, an empty line": (b"EHLO client.example.com\r\n\r\n", [400]),
    "garbage": (bytes(range(128, 256)) * 4, []),
    "garbage below a space": (bytes(range(32)) * 4, [400]),
    "a proxy header": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\n\r\n", [400]),
    "a proxy header, binary": (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), [400]),
    "redis": (b"*1\r\n$4\r\nPING\r\n", []),
    "rtsp": (b"OPTIONS rtsp://ORIGIN/ RTSP/1.0\r\nCSeq: 1\r\n\r\n", [400]),
    "ssdp": (b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n", [511]),
    "dns over tcp": (
        b"\x00\x1d\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x01a\x00\x00\x01\x00\x01",
        [400],
    ),
    "TLS later": (
        b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        [511, 400],
    ),
    "h2 after an upgrade": (
        b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        [511, 511, 400],
    ),
    "bytes after CONNECT": (
        b"CONNECT ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\nGET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        [511],
    ),
}  # fmt: skip

# What is sent in a tunnel that leads nowhere.
INSIDE_A_TUNNEL = {
    "a request": b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    "absolute": b"GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    "another connect": b"CONNECT ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    "a websocket": b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "one byte": b"G",
    "socks": b"\x05\x01\x00",
    "h2c": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "garbage": bytes(range(256)),
    "an upload": b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 99\r\n\r\nabc",
}

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: GARDEN\r\n\r\n"

# Fields and a body that can be read in two ways: on the way to the garden, they get 400.
AMBIGUOUS = [
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    (b"Content-Length: 5, 6\r\n", b"abcdef"),
    (b"Content-Length: 0x5\r\n", b"abcde"),
    (b"Content_Length: 5\r\nTransfer-Encoding : chunked\r\n", b"abcde"),
    (b"X: a\x01b\r\n", b""),
    (b"X: a\x7fb\r\n", b""),
    (b"X: a\rb\r\n", b""),
    (b"X: a\x00b\r\n", b""),
    (b"Host: outside.example.com\r\n", b""),
    (b"Transfer-Encoding: chunked\r\n", b"zz\r\n"),
]

SEEDS = [
    b"GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nConnection: keep-alive\r\n\r\n",
    b"POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n"
    b"0\r\nT: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: ORIGIN\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"CONNECT ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    b"CONNECT ORIGIN HTTP/1.1\r\nUser-Agent: Mozilla/5.0\r\nHost: ORIGIN\r\n\r\n"
    b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ORIGIN\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"OPTIONS * HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\x00\x31\x01\x00\x00\x2d\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00",
    b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
    b"SSH-2.0-OpenSSH_9.2\r\n",
]  # fmt: skip
SPICE = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\xff", b"\x0b", b"\r\n\r\n", b"\r\n "),
    *(b"Host: ORIGIN\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"0\r\n\r\n",),
    *(b"http://ORIGIN/", b"ORIGIN", b"@", b"CONNECT ", b"HTTP/1.0", b"HTTP/2.0", b"\x16\x03\x01"),
    *(b"GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n", b"a" * 70_000),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], spice: list[bytes]) -> bytes:
    """One or two of `seeds`, cut, doubled and spiced."""
    data = draw(st.sampled_from(seeds))
    if draw(st.booleans()):
        data += draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        what = draw(st.sampled_from(["cut", "double", "spice", "byte", "case"]))
        if what == "cut":
            data = data[:at] + data[to:]
        elif what == "double":
            data = data[:to] + data[at:]
        elif what == "spice":
            data = data[:at] + draw(st.sampled_from(spice)) + data[at:]
        elif what == "byte":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        else:
            data = data[:at] + data[at:to].swapcase() + data[to:]
    return data
