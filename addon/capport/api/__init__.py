"""For programs: RFC 8908's API, and the one for a login server of the operator's own."""
