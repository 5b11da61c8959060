"""A simple client: one request through the portal's proxy, and its answer."""

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from capport.testing import Portal
from conftest import SOON


@dataclass(frozen=True, slots=True)
class Got:
    """The answer, with the body as far as it arrived."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def connection_for(
    portal: Portal, url: str, *, checks: bool = True, trusts: Path | None = None
) -> http.client.HTTPConnection:
    """A connection to the proxy, or for https through it, that trusts the origin's CA."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return http.client.HTTPConnection("127.0.0.1", portal.port, timeout=SOON)
    context = ssl.create_default_context(cafile=trusts or portal.ca_file)
    if not checks:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tunnel = http.client.HTTPSConnection("127.0.0.1", portal.port, timeout=SOON, context=context)
    tunnel.set_tunnel(parts.hostname or "", parts.port or 443)
    return tunnel


def ask(
    portal: Portal,
    url: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    checks: bool = True,
    trusts: Path | None = None,
) -> Got:
    """One request on a connection of its own."""
    connection = connection_for(portal, url, checks=checks, trusts=trusts)
    target = url if url.startswith("http:") else urlsplit(url).path
    try:
        connection.request(method, target, headers=headers or {})
        answer = connection.getresponse()
        return Got(answer.status, answer.headers, answer.read())
    finally:
        connection.close()
