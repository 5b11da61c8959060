"""What a client's own agent is told of its captivity: the document of RFC 8908 section 5."""

from capport.core.negotiation import weighted
from capport.core.standing import Standing

MEDIA_TYPE = "application/captive+json"
"""RFC 8908 section 8.1."""

ASKED_FOR_AS = frozenset({MEDIA_TYPE, "application/capport+json"})
"""What an agent may name in Accept: RFC 8908's own, and what RFC 8910 section 2 calls it."""


def captivity(
    standing: Standing,
    *,
    user_portal_url: str | None = None,
    venue_info_url: str | None = None,
    can_extend: bool | None = None,
) -> dict[str, object]:
    """The members of RFC 8908 section 5, in its order: whether the client is captive, how long not.

    A URL that is not https is left out: both MUST or SHOULD be accessed over TLS. The seconds
    and `can-extend-session` are there only while there is a session to run out or to extend.
    """
    document: dict[str, object] = {"captive": not standing.is_known}
    if user_portal_url and user_portal_url.startswith("https://"):
        document["user-portal-url"] = user_portal_url
    if venue_info_url and venue_info_url.startswith("https://"):
        document["venue-info-url"] = venue_info_url
    if standing.open_session and can_extend is not None:
        document["can-extend-session"] = can_extend
    if standing.seconds_remaining is not None:
        document["seconds-remaining"] = standing.seconds_remaining
    return document


def reads_captivity(accept: str) -> bool:
    """Whether an Accept field names the document's media type by itself, and not with q=0.

    RFC 8910 section 2: who does not may be sent to the login server instead. A wildcard names
    nothing: that is a browser.
    """
    return any(name in ASKED_FOR_AS and weight > 0 for name, weight in weighted(accept))
