"""The login server (RFC 8952's User Portal) and the Captive Portal API (RFC 8908), on Tornado."""
