"""An HTTP 511 captive portal (RFC 6585 section 6) for mitmproxy."""

__version__ = "0.1.0"
