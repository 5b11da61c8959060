"""HTTP/1 trailers, which mitmproxy cannot read: it raises over them, and says no more."""

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy.layers.http import _http1


class WithoutTrailers(ChunkedReader):
    """Reads a chunked body, and discards its trailers, as who passes it on may (RFC 9112 7.1.2)."""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """The next part of the body; None until there is more."""
        part = super().__call__(buf)
        return h11.EndOfMessage() if isinstance(part, h11.EndOfMessage) else part


def discard() -> None:
    """Has mitmproxy's HTTP/1 read every chunked body so."""
    _http1.ChunkedReader = WithoutTrailers  # type: ignore[attr-defined]
