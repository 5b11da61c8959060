"""Which path of the login server is which page."""

from typing import Any

from tornado import web

from capport.login import forms
from capport.login.login_context import LoginContext
from capport.login.page_handler import NotFound, Page
from capport.login.signed_return import SignedReturn
from capport.web.context import Portal


def create_app(
    portal: Portal, login: LoginContext, encrypted: bool, *also: tuple[str, type[Page]]
) -> web.Application:
    """The pages and the style; and what answers at other paths in the same way."""
    given = {"portal": portal, "login": login}
    routes: list[Any] = [
        (r"/", forms.SignIn, given),
        (r"/sign-in", forms.SignIn, given),
        (r"/welcome", forms.Welcome, given),
        (r"/status", forms.Status, given),
        (r"/sign-out", forms.SignOut, given),
        (r"/signed-out", forms.SignedOut, given),
        (r"/(style\.css|logo|mark\.svg)", forms.File, given),
        (r"/return", SignedReturn, given),
        *((path, answers, given) for path, answers in also),
    ]
    return web.Application(
        routes,
        default_handler_class=NotFound,
        default_handler_args=given,
        xsrf_cookies=True,
        # Lax, not Strict: the way here leads through a 511 under another name, and with Strict each
        # new tab would void the form in the tab before. Lax is not sent with another site's form.
        xsrf_cookie_kwargs={"httponly": True, "samesite": "Lax", "secure": encrypted, "path": "/"},
        # The prefix keeps a neighbouring name, or the same without TLS, from setting it.
        xsrf_cookie_name="__Host-capport" if encrypted else "capport",
        # A URL here has a state in it, and who reads the log need not have it.
        log_function=lambda handler: None,
        serve_traceback=False,
    )
