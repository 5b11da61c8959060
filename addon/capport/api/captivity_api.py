"""The Captive Portal API (RFC 8908): a device asks it at the URL that RFC 8910 announces."""

import json

from capport.core.captivity import MEDIA_TYPE, captivity, reads_captivity
from capport.web.client_handler import ClientHandler


class CaptivePortalApi(ClientHandler):
    """Answers for the client at the other end of the connection, and for no other client."""

    for_indistinct = True  # the answer says that such a client is captive

    def get(self) -> None:
        """Answers with the document, or redirects a browser to the login server."""
        # RFC 8910 section 2: no cache may answer a browser with the document, or a device with the
        # redirect. RFC 8908 section 5: `private` or stricter, because it is one client's state.
        self.set_header("Cache-Control", "private, no-store")
        self.set_header("Vary", "Accept")
        state = self.context.states.for_agent(self.client)
        portal_url = self.policy.login_url_with(state, self.client.address)
        if not reads_captivity(self.request.headers.get("Accept", "")):
            self.redirect(portal_url, status=302)
            return
        standing = self.standing
        document = captivity(
            standing,
            user_portal_url=portal_url,
            venue_info_url=self.server.venue_info_url,
            can_extend=standing.open_session is not None and self.can_extend(standing.open_session),
        )
        self.set_header("Content-Type", MEDIA_TYPE)
        self.finish(json.dumps(document) + "\n")
