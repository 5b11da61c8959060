"""Makes the application on the login server's port: its pages, and the Captive Portal API.

It is imported only if the policy needs it, because the pages need packages that the gate does not.
"""

import logging

from capport.api.captivity_api import CaptivePortalApi
from capport.core.captivity import PATH
from capport.core.policy import Policy
from capport.login.login_context import LoginContext
from capport.login.page_handler import Page
from capport.login.routes import create_app
from capport.web.context import WebContext
from capport.web.login_listener import App

logger = logging.getLogger(__name__)


class _CaptivePortalApi(CaptivePortalApi, Page):
    """The Captive Portal API as a page: errors are pages, and `can_extend` is that of `Page`."""


class LoginPages:
    """Makes the application each time the login server starts to listen, from one context."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self.login = LoginContext()

    def create(self, encrypted: bool) -> App:
        """The application. Also logs each file in the theme's folder that has no use."""
        for unused in self.login.theme(self._context.gate.policy).unused():
            logger.warning(unused)
        return create_app(self._context, self.login, encrypted, (PATH, _CaptivePortalApi))

    def signs_in_elsewhere(self, policy: Policy) -> bool:
        """Whether an external login server signs clients in (`Theme.signs_in_elsewhere`)."""
        return self.login.theme(policy).signs_in_elsewhere

    def close(self) -> None:
        """Ends the thread that checks passwords, after the check that is running."""
        self.login.close()
