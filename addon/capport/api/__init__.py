"""The APIs for programs: RFC 8908's for devices, and one for the operator's own login server."""
