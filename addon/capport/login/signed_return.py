"""Grants sessions by the signed JWT of a login server that cannot reach the router's API.

That login server's public key is `login/return.pem` beside the policy. If that file is there, our
own forms are off. When a client has met its conditions, that login server sends the browser to
`/return?g=JWT` (RFC 7519, signed as RFC 7515 says) with

    aud    the URL of `/return`, as the browser is sent there
    state  what it got for `{state}` in `login_url`, from the same client
    jti    any text; it is used once
    exp    at most 60 s ahead
    lifetime, name   of the session; optional
"""

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tornado import web

from capport.core import session
from capport.log_limits import QUOTED
from capport.login.page_handler import Page
from capport.web.client_handler import Forbidden
from capport.web.states import StateError

logger = logging.getLogger(__name__)

BY = "signed return"
LONGEST = 60.0
"""Seconds ahead that `exp` may be."""

_CLAIMS = ("aud", "state", "jti", "exp")

# PyJWT knows this algorithm as EdDSA; RFC 9864 renames it to Ed25519. We accept both names.
with suppress(ValueError):  # a newer PyJWT knows the new name already
    jwt.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())


class ReturnError(ValueError):
    """A signed return that is refused. The text says why, for the log and not for the page."""


@dataclass(frozen=True, slots=True)
class Return:
    """What the login server signed. `lifetime` is in seconds; None: the policy's."""

    state: str
    jti: str
    lifetime: float | None
    name: str


def read_return(token: str, pem: bytes, audience: str, now: float) -> Return:
    """The content of `token`, if it is signed with the key that belongs to the public key `pem`.

    `now` is in Unix seconds. Raises ReturnError; ValueError if `pem` is not a key that we accept.
    The key decides the algorithm, never the token (RFC 8725 section 3.1).
    """
    key, algorithms = _key(pem)
    try:
        # We check `exp` below: by the caller's clock, and at both ends. We ignore `iat`, which many
        # libraries add: it is only information (RFC 7519 section 4.1.6), and may be a second ahead.
        checks = {"require": list(_CLAIMS), "verify_exp": False}
        checks |= {"verify_nbf": True, "verify_iat": False}
        said = jwt.decode(
            token,
            key=key,
            algorithms=algorithms,
            audience=audience,
            options=checks,  # type: ignore[arg-type]
        )
    except jwt.InvalidAudienceError:
        raise ReturnError(f"aud is not {audience}") from None
    except jwt.InvalidAlgorithmError:
        alg = " or ".join(algorithms)
        raise ReturnError(f"alg is not {alg}, which the key in return.pem needs") from None
    except jwt.PyJWTError as error:
        raise ReturnError(f"{type(error).__name__}: {error}") from None
    expires = _number(said, "exp")
    if not 0 < expires - now <= LONGEST:
        raise ReturnError(f"exp is not 0 to {LONGEST:g} s ahead: {expires - now:.0f} s")
    lifetime = _number(said, "lifetime") if "lifetime" in said else None
    if lifetime is not None and not 1 <= lifetime <= session.LONGEST:
        raise ReturnError(f"lifetime is not 1 to {session.LONGEST} s")
    state, jti, name = (said.get(claim, "") for claim in ("state", "jti", "name"))
    if not all(isinstance(text, str) and len(text) <= 2048 for text in (state, jti, name)):
        raise ReturnError("state, jti and name must be strings of at most 2048 characters")
    if not jti or len(name) > 100 or not (jti.isprintable() and name.isprintable()):
        raise ReturnError("jti: required, printable; name: at most 100 printable characters")
    return Return(state, jti, lifetime, name)


class SignedReturn(Page):
    """`/return`: a client comes back from a login server that has signed it in."""

    SUPPORTED_METHODS = ("GET",)  # no HEAD: it would use up the return

    async def get(self) -> None:
        """Grants the client a session, once, and sends it to the welcome page."""
        pem = self.login.theme(self.policy).return_key()
        if pem is None:
            raise web.HTTPError(404)
        audience = f"{self.request.protocol}://{self.request.host}/return"
        token = self.get_query_argument("g", "")
        try:
            said = read_return(token, pem, audience, self.context.wall())
            state = self.context.states.read(said.state)
            if not state.is_of(self.client):
                raise ReturnError("the state is another client's")
        except (ReturnError, StateError) as error:
            self._log_refusal(str(error))
            raise web.HTTPError(403, "%s", str(error)) from error
        if self.standing.is_blocked:
            raise Forbidden("blocked")
        jti = hashlib.sha256(b"jti\0" + said.jti.encode("utf-8", "surrogatepass")).digest()
        async with self.context.spending(state, self.client, jti) as spent_by:
            if spent_by is None:
                grant = partial(self.context.grants.grant, by=BY, how=f"jti {said.jti[:64]}")
                await grant(self.client, lifetime=said.lifetime, name=said.name)
            elif not self.standing.is_known:
                self._log_refusal("its state or its jti was used before")
                raise web.HTTPError(403, "that return was used before")
        self.redirect(self.link("/welcome", state=said.state), status=303)

    def _log_refusal(self, why: str) -> None:
        """Logs why a return was refused, because the page does not say it."""
        if self.login.returns.is_due(self.context.gate.now()):
            logger.warning(f"The signed return of {self.client} is refused: {why[:QUOTED]!r}")


def _key(pem: bytes) -> tuple[Any, list[str]]:
    key = load_pem_public_key(pem)
    match key:
        case ed25519.Ed25519PublicKey():
            return key, ["EdDSA", "Ed25519"]
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return key, ["ES256"]
        case _:
            raise ValueError("return.pem is neither an Ed25519 nor a P-256 public key")


def _number(said: dict[str, Any], claim: str) -> float:
    value = said[claim]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReturnError(f"{claim} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ReturnError(f"{claim} is too large a number") from None
