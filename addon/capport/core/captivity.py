"""The document of RFC 8908 section 5, which tells a client's agent whether it is captive."""

from capport.core.negotiation import weighted
from capport.core.standing import Standing

PATH = "/api/captive-portal"
"""The path at the login server. DHCP option 114 and the RA option have the whole https URL."""

MEDIA_TYPE = "application/captive+json"
"""RFC 8908 section 8.1."""

ASKED_FOR_AS = frozenset({MEDIA_TYPE, "application/capport+json"})
"""The types by which an agent may ask for it in Accept: RFC 8908's, and RFC 8910 section 2's."""


def captivity(
    standing: Standing,
    *,
    user_portal_url: str | None = None,
    venue_info_url: str | None = None,
    can_extend: bool | None = None,
) -> dict[str, object]:
    """The members of the document, in the order of RFC 8908 section 5.

    A URL that is not https is left out, because the RFC wants both to be accessed over TLS.
    `seconds-remaining` and `can-extend-session` are present only while the client has an open
    session.
    """
    document: dict[str, object] = {"captive": not standing.is_known}
    for name, url in (("user-portal-url", user_portal_url), ("venue-info-url", venue_info_url)):
        if url and url.startswith("https://"):
            document[name] = url
    if standing.open_session and can_extend is not None:
        document["can-extend-session"] = can_extend
    if standing.seconds_remaining is not None:
        document["seconds-remaining"] = standing.seconds_remaining
    return document


def reads_captivity(accept: str) -> bool:
    """Whether an Accept field names the document's media type by itself, and not with q=0.

    A client that does not name it may be sent to the login server instead (RFC 8910 section 2).
    A wildcard does not count as naming it, because browsers send wildcards.
    """
    return any(name in ASKED_FOR_AS and weight > 0 for name, weight in weighted(accept))
