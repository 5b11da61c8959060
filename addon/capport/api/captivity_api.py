"""The Captive Portal API (RFC 8908): what a client's own agent asks, at the URL of RFC 8910."""

import json

from capport.core.captivity import MEDIA_TYPE, captivity, reads_captivity
from capport.web.client_handler import ClientHandler
from capport.web.states import login_url

PATH = "/api/captive-portal"
"""Below the login server; what DHCP option 114 and the RA option name, in full and over https."""


class CaptivePortalApi(ClientHandler):
    """Answers for the client at the other end of the connection, and for nobody else."""

    for_indistinct = True  # such a client is captive

    def get(self) -> None:
        """The document; or the way to the login server, for whom does not ask for a document."""
        # RFC 8910 section 2: who is sent elsewhere by its Accept field must not be shown it again
        # from a cache. RFC 8908 section 4: private, or stricter; it is a client's own state.
        self.set_header("Cache-Control", "private, no-store")
        self.set_header("Vary", "Accept")
        portal_url = login_url(
            self.policy, self.client.address, self.portal.states.for_agent(self.client)
        )
        if not reads_captivity(self.request.headers.get("Accept", "")):
            self.redirect(portal_url, status=302)
            return
        stands = self.standing
        document = captivity(
            stands,
            user_portal_url=portal_url,
            venue_info_url=self.server.venue_info_url,
            can_extend=stands.open_session is not None and self.can_extend(stands.open_session),
        )
        self.set_header("Content-Type", MEDIA_TYPE)
        self.finish(json.dumps(document) + "\n")
