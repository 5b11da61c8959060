"""Traces that only a portal's page can leave in a client, and that a later request may show."""

from collections.abc import Iterator

ETAG = '"capport-portal"'
"""The validator of a portal's page, in the kinds of portal that send one."""
COOKIE = "capport-portal"
"""The name of the cookie that such a page sets."""
FOLDER = "/capport-portal/"
"""Where such a page says that its images and scripts are."""


def traces_in(path: str, validators: str, cookies: str) -> Iterator[str]:
    """The traces in a request: its path, its If-None-Match and If-Range, and its Cookie fields."""
    if path.startswith(FOLDER):
        yield "url"
    if ETAG in validators:
        yield "validator"
    if f"{COOKIE}=" in cookies:
        yield "cookie"
