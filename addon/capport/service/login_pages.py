"""What answers on the login server's port: its pages, and the Captive Portal API beside them.

Imported only where a policy asks for it: the pages need packages that the gate does without.
"""

import logging

from capport.api.captivity_api import PATH, CaptivePortalApi
from capport.core.policy import Policy
from capport.login.login_context import LoginContext
from capport.login.page_handler import Page
from capport.login.routes import create_app
from capport.web.context import Portal
from capport.web.login_listener import App

logger = logging.getLogger(__name__)


class _CaptivePortalApi(CaptivePortalApi, Page):
    """The Captive Portal API, where errors are pages, and the pages know what can be extended."""


class LoginPages:
    """Makes the application whenever the login server begins to listen, from one context."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self.login = LoginContext()

    def create(self, encrypted: bool) -> App:
        """The application; warns of files in the theme's folder that have no use."""
        for unused in self.login.theme(self._portal.grants.policy).unused():
            logger.warning("%s", unused)
        return create_app(self._portal, self.login, encrypted, (PATH, _CaptivePortalApi))

    def signs_in_elsewhere(self, policy: Policy) -> bool:
        """Whether `login_url` leads to others (`Theme.signs_in_elsewhere`)."""
        return self.login.theme(policy).signs_in_elsewhere

    def close(self) -> None:
        """Ends the thread for passwords, when what it is at is done."""
        self.login.close()
