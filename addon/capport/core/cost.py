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
"""Bytes of memory that a connection takes before its first request, or between two."""

KEPT: Final = RESTING + INPUT * 5 // 4
"""Bytes of memory that a connection takes while an input is not complete.

The input is kept once, in a buffer that has room to grow.
"""

READ: Final = RESTING + INPUT * 7 // 4
"""Bytes of memory that a connection takes while the gate decides on an unknown client's input.

The input is kept once as it was parsed, beside the last pieces that were read, and the objects that
read them.
"""

FORWARDED: Final = RESTING + INPUT * 9 // 4
"""As `READ`, for input that mitmproxy reads: a known client's, an origin's, in intercepted TLS.

The input is kept twice: mitmproxy holds what it read last until it reads more. Smaller pieces would
take less, but cost twice the processor time for each byte of a known client's download.
"""

HEAD: Final = 64 * 1024
"""Bytes of a request line or status line with its header section. Also the bound of trailers, and
of a chunk's size line with its extensions (RFC 9112 section 7.1.1 wants them limited)."""

LINE: Final = 16 * 1024
"""Bytes of a request line or status line alone (RFC 9112 section 3 asks for 8000 at least)."""

FIELDS: Final = 500
"""Header fields in one head, or in the trailers of one body."""

ANSWERS: Final = 100
"""The most answers on one connection, which ends after the last of them."""
