"""What one stranger may cost: the bounds that every reader of strangers' bytes keeps.

A stranger is an unknown client, or any origin on the Internet. The reader may be our code, or a
library. tests/proxy/test_costs.py measures each reader with the worst input known for it.
"""

from typing import Final

INPUT: Final = 64 * 1024
"""Bytes that one step of the event loop reads at most, because mitmproxy asks for no more."""

HELD: Final = 0.020
"""Seconds of processor time for which one step may hold the event loop.

Everybody else's packets wait meanwhile. A flood by strangers may delay a known client by 20 ms
(99th percentile), which the jitter buffer of a voice call absorbs.
"""

GROWTH: Final = 2.5
"""How much more a whole input may cost than half of it: a factor of 2 is linear, 4 quadratic."""

RESTING: Final = 32 * 1024
"""Bytes of memory that a connection takes before its first request, or between two.

While an input is read, the connection also takes the bytes of the input, once, because an input has
to be complete before it can be decided on; and at most `BESIDE` more.
"""

BESIDE: Final = 64 * 1024
"""Bytes of memory that a connection takes beside those, for as long as it reads the input."""

READING: Final = BESIDE * 3 // 4
"""The part of `BESIDE` for the last bytes that were read, and for the objects that read them.

In TLS that mitmproxy takes itself it may be more, because mitmproxy's parser copies a ClientHello.
"""

WAITING: Final = BESIDE // 4
"""The part of `BESIDE` for an input that is not complete, whose buffer has room to grow."""

HEAD: Final = 64 * 1024
"""Bytes of a request line or status line with its header section. Also the bound of trailers, and
of a chunk's size line with its extensions (RFC 9112 section 7.1.1 wants them limited)."""

LINE: Final = 16 * 1024
"""Bytes of a request line or status line alone (RFC 9112 section 3 asks for 8000 at least)."""

FIELDS: Final = 500
"""Header fields in one head, or in the trailers of one body."""

ANSWERS: Final = 100
"""The most answers on one connection, which ends after the last of them."""
