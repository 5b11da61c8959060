"""What one stranger may cost: the bounds that every reader of strangers' bytes keeps.

A stranger is an unknown client, or an origin that anybody visits. The reader may be ours, or a
library's. tests/enforcement/test_costs.py measures each of them with the worst input that is known.
"""

from typing import Final

INPUT: Final = 64 * 1024
"""Bytes that one step of the event loop reads: mitmproxy asks its sockets for no more."""

HELD: Final = 0.020
"""Seconds of processor time for which one step may hold the event loop.

Everybody else's packets wait meanwhile. 20 ms is what a known client may lose by a flood of
strangers (99th percentile), and no more than a voice call's jitter buffer takes up.
"""

GROWTH: Final = 2.5
"""How many times the cost of half an input the whole may cost: 2 is linear, 4 quadratic."""

READ: Final = 10 * INPUT
"""Bytes that may be kept of an input while it is decided on.

As it came, taken apart, as text, as it is shown, as it goes on: so often, and nothing for each of
its bytes. What is not whole yet is kept once, and a piece of it once more.
"""

RESTING: Final = 32 * 1024
"""Bytes that a connection may keep while nothing is going on in it."""

HEAD: Final = 64 * 1024
"""Bytes of a request line or status line and its header section; of trailers; of a chunk's size
and its extensions (RFC 9112 section 7.1.1: to be limited)."""

LINE: Final = 16 * 1024
"""Bytes of a request line or status line alone (RFC 9112 section 3: 8000 have to be read)."""

FIELDS: Final = 500
"""Header fields in one head, or in the trailers of one body."""
