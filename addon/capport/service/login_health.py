"""Whether the login server answers: for Chromium, a 302 that leads nowhere is no portal."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from capport.api.captivity import PATH
from capport.core.captivity import MEDIA_TYPE
from capport.core.policy import Policy, Probes
from capport.gate import Gate
from capport.proxy.resolver import Addresses

logger = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between two questions
AGAIN = 1.0  # where there was no answer: a login server that has just started is soon found
PATIENCE = 3.0  # seconds for an answer

_OTHERS = "The login server does not answer"


async def follow(gate: Gate, addresses: Addresses, elsewhere: Callable[[], bool]) -> None:
    """Keeps `gate.login_answers` true to what the login server does, for ever.

    `elsewhere` says whether `login_url` leads to others, though there is an embedded one.
    """
    said = None
    while True:
        if gate.policy.probes is Probes.COMPATIBLE:
            ours = is_ours(gate.policy, elsewhere)
            answers = await login_answers(gate.policy, addresses, ours=ours)
            if answers and answers != said:
                logger.info("The login server answers: connectivity checks get a 302")
            elif answers != said:
                who = "No login server of capport's answers" if ours else _OTHERS
                logger.warning(
                    f"{who} at {gate.policy.login_place}, where this machine finds it:"
                    " connectivity checks get a 511"
                )
            gate.login_answers = said = answers
        await asyncio.sleep(INTERVAL if said else AGAIN)


async def login_answers(policy: Policy, addresses: Addresses, *, ours: bool) -> bool:
    """Whether the login server of `policy` answers HTTP, with anything but an error of its own.

    Where it is `ours`, the embedded one, only its Captive Portal API's answer counts: another
    server can have taken its port, and nobody should be sent to that.
    """
    place = policy.login_place
    asked = f"HEAD {PATH if ours else '/'} HTTP/1.1\r\nHost: {place}\r\n"
    accept = f"Accept: {MEDIA_TYPE}\r\n" if ours else ""
    head = f"{asked}{accept}Connection: close\r\n\r\n"
    tls = _any_certificate() if urlsplit(policy.login_url).scheme == "https" else None
    try:
        async with asyncio.timeout(PATIENCE):
            address = (await addresses.resolve(place.host))[0]
            reader, writer = await asyncio.open_connection(
                str(address), place.port, ssl=tls, server_hostname=str(place.host) if tls else None
            )
            try:
                writer.write(head.encode("ascii"))
                line = await reader.readline()
                fields = await reader.readuntil(b"\r\n\r\n") if ours else b""
            finally:
                writer.close()
    except (OSError, TimeoutError, IndexError, ValueError):
        return False  # ValueError: a line without end
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    if ours:
        media_type = f"\r\ncontent-type: {MEDIA_TYPE}\r\n".encode("ascii")
        return line.startswith(b"HTTP/1.1 200 ") and media_type in b"\r\n" + fields.lower()
    return line.startswith(b"HTTP/1.") and line[9:10] in (b"2", b"3", b"4")


def is_ours(policy: Policy, elsewhere: Callable[[], bool]) -> bool:
    """Whether the login URL leads straight to the embedded login server, with nothing in front."""
    server = policy.login_server
    if server is None or server.listen.port != policy.login_place.port:
        return False
    try:
        return not elsewhere()
    except OSError:  # its key cannot be read: nobody is let on by it
        return True


def _any_certificate() -> ssl.SSLContext:
    # The question is whether it answers. Clients check its certificate themselves, and this machine
    # may not have the CA that they have.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
