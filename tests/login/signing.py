"""A login server that cannot reach the router, and signs what it grants."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from capport.core.place import Place
from capport.web.states import State
from login.house import House, Page, at, house, policy

KEY, OTHER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()


def pem_of(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Elsewhere:
    """A login server that cannot reach the router, and signs what it grants."""

    house: House

    def token(self, key: Any = KEY, algorithm: str = "EdDSA", **changes: object) -> str:
        state = self.house.context.states.mint(at("127.0.0.2"), "http://www.example.org/news")
        claims = {
            "aud": f"http://127.0.0.1:{self.house.port}/return",
            "state": state,
            "jti": f"{time.monotonic_ns()}",
            "exp": time.time() + 30,
        } | changes
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, key, algorithm)

    async def back(self, token: str, address: str = "127.0.0.2") -> Page:
        return await self.house.browser(address).get(f"/return?g={token}")

    def state_in(self, page: Page) -> State:
        """The state in a redirect to that login server, which must have no other query."""
        start, _, state = (page.location or "").partition("?state=")
        assert (page.status, start) == (302, "https://login.example.net/")
        return self.house.context.states.read(state)


@asynccontextmanager
async def elsewhere(folder: Path, pem: bytes | None = None) -> AsyncIterator[Elsewhere]:
    (folder / "login").mkdir()
    (folder / "login" / "return.pem").write_bytes(pem or pem_of(KEY))
    there = replace(
        policy(file=folder / "lab.yaml"),
        login_url="https://login.example.net/?state={state}",
        login_place=Place("login.example.net", 443),
    )
    async with house(there) as h:
        yield Elsewhere(h)
