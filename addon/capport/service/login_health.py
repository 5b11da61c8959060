"""Checks whether the login server answers, asking it as a client would.

Chromium shows no portal if the 302 leads to a server that does not answer, or whose certificate it
does not trust. So connectivity checks get a 302 only while the login server answers.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

from capport.core.captivity import MEDIA_TYPE, PATH
from capport.core.client import Address
from capport.core.place import Host, Place
from capport.core.policy import Login, Policy, Probes
from capport.linux.file_state import state_of

logger = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between two checks
AGAIN = 1.0  # the same, if one does not answer: so a login server that has started is found soon
PATIENCE = 3.0  # seconds to wait for an answer


class Resolver(Protocol):
    """Resolves names as this machine does."""

    async def resolve(self, host: Host) -> list[Address]:
        """The addresses of `host`, the best first. Raises OSError."""


async def follow(
    policy_in_force: Callable[[], Policy],
    answering: dict[Place, Address],
    resolver: Resolver,
    elsewhere: Callable[[], bool],
) -> None:
    """Keeps `answering` up to date, without end: the login places that answer, and their addresses.

    `elsewhere` returns whether `login_url` points to an external login server, although the policy
    has an embedded one. If it fails, none answers (`lasting` begins it again).
    """
    before: dict[Place, Address | str] = {}
    try:
        while True:
            policy, all_answer = policy_in_force(), False
            if policy.probes is Probes.COMPATIBLE:
                asked = [_ask(policy, login, resolver, elsewhere) for login in policy.logins]
                places = [login.place for login in policy.logins]
                found = dict(zip(places, await asyncio.gather(*asked), strict=True))
                for place, said in found.items():
                    if said != before.get(place):
                        _report(place, said)
                good = {at: said for at, said in found.items() if not isinstance(said, str)}
                answering.clear()
                answering.update(good)
                all_answer, before = len(good) == len(found), found
            await asyncio.sleep(INTERVAL if all_answer else AGAIN)
    finally:
        answering.clear()


def _report(place: Place, said: Address | str) -> None:
    if isinstance(said, str):
        logger.warning(f"{said}, so connectivity checks get a 511")
    else:
        logger.info(f"The login server answers at {place}: connectivity checks get a 302")


async def _ask(
    policy: Policy, login: Login, resolver: Resolver, elsewhere: Callable[[], bool]
) -> Address | str:
    """The address at which the login server of `login` answers, or why it does not."""
    ours = is_ours(policy, login.place, elsewhere)
    try:
        return await answer(login, resolver, ours=ours)
    except OSError as error:
        server = "The embedded login server" if ours else "The login server"
        return f"{server} does not answer at {login.place} ({error.strerror or error})"


def trusted_here() -> ssl.SSLContext:
    """A context that checks certificates against this machine's trust store, as browsers would."""
    paths = ssl.get_default_verify_paths()
    return _trusting(tuple(state_of(path) for path in (paths.cafile, paths.capath) if path))


@lru_cache(1)
def _trusting(stores: tuple[tuple[int, ...], ...]) -> ssl.SSLContext:
    """The context as long as the trust stores are in these states."""
    context = ssl.create_default_context()
    # Python 3.13 also requires fields that browsers do not, such as key identifiers.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def answer(login: Login, resolver: Resolver, *, ours: bool) -> Address:
    """The address at which the login server answers HTTP, with a status of 200 to 499.

    If it is `ours`, the embedded one, only an answer of its Captive Portal API counts: another
    server may have taken its port, and clients must not be sent there. Raises OSError that says why
    a client would get no answer.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            address = (await resolver.resolve(login.place.host))[0]
            line, fields = await _head(login, address, ours=ours)
    except ssl.SSLCertVerificationError as error:
        why = f"this machine does not trust its certificate: {error.verify_message}"
        raise OSError(why) from error
    except TimeoutError:
        raise OSError(f"no answer within {PATIENCE:g} s") from None
    except (ValueError, EOFError, IndexError, asyncio.LimitOverrunError) as error:
        raise OSError("the server there does not speak HTTP") from error
    if ours:
        media_type = f"\r\ncontent-type: {MEDIA_TYPE}\r\n".encode("ascii")
        good = line.startswith(b"HTTP/1.1 200 ") and media_type in b"\r\n" + fields.lower()
    else:
        good = line.startswith(b"HTTP/1.") and line[9:10] in (b"2", b"3", b"4")
    if not good:
        raise OSError(f"the server there answers {line[:40].strip()!r}")
    return address


async def _head(login: Login, address: Address, *, ours: bool) -> tuple[bytes, bytes]:
    """The status line of the answer and, if the server should be `ours`, the header fields."""
    place, tls = login.place, urlsplit(login.url).scheme == "https"
    asked = f"HEAD {PATH if ours else '/'} HTTP/1.1\r\nHost: {place}\r\n"
    accept = f"Accept: {MEDIA_TYPE}\r\n" if ours else ""
    reader, writer = await asyncio.open_connection(
        str(address),
        place.port,
        ssl=trusted_here() if tls else None,
        server_hostname=str(place.host) if tls else None,
    )
    try:
        writer.write(f"{asked}{accept}Connection: close\r\n\r\n".encode("ascii"))
        return await reader.readline(), await reader.readuntil(b"\r\n\r\n") if ours else b""
    finally:
        writer.close()


def is_ours(policy: Policy, place: Place, elsewhere: Callable[[], bool]) -> bool:
    """Whether `place` is the embedded login server itself, with no proxy in front of it."""
    server = policy.login_server
    if server is None or place.port not in {each.port for each in server.listen}:
        return False
    return not elsewhere()
