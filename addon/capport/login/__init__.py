"""The login server's pages (RFC 8952's User Portal), on Tornado."""
