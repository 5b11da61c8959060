"""The paths of the login server, and the page of each."""

from typing import Any

from tornado import web

from capport.login import forms
from capport.login.login_context import LoginContext
from capport.login.page_handler import NotFound, Page
from capport.login.signed_return import SignedReturn
from capport.web.context import WebContext


def create_app(
    context: WebContext, login: LoginContext, encrypted: bool, *also: tuple[str, type[Page]]
) -> web.Application:
    """The application with all pages; `also`: further paths, each with its handler."""
    given = {"context": context, "login": login}
    routes: list[Any] = [
        (r"/", forms.SignInForm, given),
        (r"/sign-in", forms.SignInForm, given),
        (r"/welcome", forms.Welcome, given),
        (r"/status", forms.Status, given),
        (r"/sign-out", forms.SignOutForm, given),
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
        # Lax, not Strict: clients come here by a link on another site (a 511). With Strict, the
        # browser would not send the cookie then, we would set a new one, and the form in an earlier
        # tab would be void. With Lax, the browser does not send it with another site's form either.
        xsrf_cookie_kwargs={"httponly": True, "samesite": "Lax", "secure": encrypted, "path": "/"},
        # With this prefix, neither a sibling domain nor our name without TLS can set the cookie.
        xsrf_cookie_name="__Host-capport" if encrypted else "capport",
        # No access log: a URL here has a state in it, which must not get into the log.
        log_function=lambda handler: None,
        serve_traceback=False,
    )
