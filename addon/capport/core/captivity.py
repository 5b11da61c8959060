"""What a client's own agent is told of its captivity: the document of RFC 8908 section 5."""

from dataclasses import dataclass

from capport.core.negotiation import weighted
from capport.core.policy import Access, ClientRule
from capport.core.session import Instant, Session

MEDIA_TYPE = "application/captive+json"
"""RFC 8908 section 8.1."""

ASKED_FOR_AS = frozenset({MEDIA_TYPE, "application/capport+json"})
"""What an agent may name in Accept: RFC 8908's own, and what RFC 8910 section 2 calls it."""


@dataclass(frozen=True, slots=True)
class Captivity:
    """Whether a client is captive, and for how long it is not: no `seconds_remaining`, no end."""

    captive: bool
    because: str
    seconds_remaining: int | None = None
    has_session: bool = False

    def document(
        self,
        *,
        user_portal_url: str | None = None,
        venue_info_url: str | None = None,
        can_extend: bool | None = None,
    ) -> dict[str, object]:
        """The members of RFC 8908 section 5, in its order.

        A URL that is not https is left out: both MUST or SHOULD be accessed over TLS. The seconds
        and `can-extend-session` are there only while there is a session to run out or to extend.
        """
        document: dict[str, object] = {"captive": self.captive}
        if user_portal_url and user_portal_url.startswith("https://"):
            document["user-portal-url"] = user_portal_url
        if venue_info_url and venue_info_url.startswith("https://"):
            document["venue-info-url"] = venue_info_url
        if self.has_session and can_extend is not None:
            document["can-extend-session"] = can_extend
        if self.seconds_remaining is not None:
            document["seconds-remaining"] = self.seconds_remaining
        return document


def captivity(
    rule: ClientRule | None, session: Session | None, now: Instant, *, lacks_mac: bool = False
) -> Captivity:
    """Whether a client of whom the policy says `rule` and the store `session` is captive.

    As the gate has it: what the policy says of a client comes before its session, and neither
    counts where it `lacks_mac` (`Case`).
    """
    if lacks_mac:
        return Captivity(True, "it has a MAC that is not known now, and a rule may block it")
    if rule is not None and rule.access is Access.BLOCKED:
        return Captivity(True, f"it is blocked at {rule.where}")
    if rule is not None:
        return Captivity(False, f"it is known at {rule.where}")
    if session is None:
        return Captivity(True, "it has no session")
    if not session.is_open(now):
        return Captivity(True, "its session is over")
    left = session.seconds_remaining(now)
    return Captivity(False, f"it is known for {left} s more", left, has_session=True)


def reads_captivity(accept: str) -> bool:
    """Whether an Accept field names the document's media type by itself, and not with q=0.

    RFC 8910 section 2: who does not may be sent to the login server instead. A wildcard names
    nothing: that is a browser.
    """
    return any(name in ASKED_FOR_AS and weight > 0 for name, weight in weighted(accept))
