"""The signed return: one client, once, now, and by that login server's word."""

import hashlib
import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from capport.core.place import Place
from capport.portal.signed_return import ReturnError, read_return
from portal.house import House, Page, at, house, policy

KEY, OTHER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Elsewhere:
    """A login server that cannot reach the router, and what it signs."""

    house: House

    def token(self, key: Any = KEY, algorithm: str = "EdDSA", **changes: object) -> str:
        state = self.house.portal.states.mint(at("127.0.0.2"), "http://www.example.org/news")
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


@asynccontextmanager
async def elsewhere(folder: Path, pem: bytes | None = None) -> AsyncIterator[Elsewhere]:
    (folder / "login").mkdir()
    (folder / "login" / "return.pem").write_bytes(pem or _pem(KEY))
    there = replace(
        policy(file=folder / "lab.yaml"),
        login_url="https://login.example.net/?state={state}",
        login_place=Place("login.example.net", 443),
    )
    async with house(there) as h:
        yield Elsewhere(h)


async def test_who_comes_back_is_online_and_may_go_on(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        answer = await e.back(e.token(lifetime=90, name="Ada"))
        welcome = await e.house.browser().follow(answer)
        assert "http://www.example.org/news" in welcome.links
        session = e.house.session()
        assert session is not None
        assert (session.seconds_remaining(e.house.clock()), session.name) == (90, "Ada")


async def test_it_counts_once_and_a_reload_does_no_harm(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        token = e.token()
        await e.back(token)
        e.house.clock.at += 10
        assert (await e.back(token)).status == 303
        session = e.house.session()
        assert session is not None
        assert session.granted == e.house.clock() - 10
        e.house.gate.revoke(session.client)
        assert (await e.back(token)).status == 403
        assert e.house.session() is None


async def test_one_jti_is_for_one_state(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        await e.back(e.token(jti="same"))
        e.house.gate.revoke(e.house.client().id)
        assert (await e.back(e.token(jti="same"))).status == 403
        assert e.house.session() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"key": OTHER},
        {"key": "secret-secret-secret-secret-secret", "algorithm": "HS256"},
        {"key": None, "algorithm": "none"},
        {"key": ec.generate_private_key(ec.SECP256R1()), "algorithm": "ES256"},
        {"aud": "http://127.0.0.1/return"},
        {"aud": None},
        {"exp": time.time() - 1},
        {"exp": time.time() + 600},
        {"exp": None},
        {"exp": True},
        {"jti": None},
        {"jti": ""},
        {"jti": 7},
        {"state": "x"},
        {"state": None},
        {"lifetime": 0},
        {"lifetime": "long"},
        {"name": "a\nb"},
    ],
)
async def test_no_other_word_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with elsewhere(tmp_path) as e:
        try:
            token = e.token(**changes)
        except TypeError:  # PyJWT does not sign what is not a string; nobody else would either
            return
        page = await e.back(token)
        assert (page.status, e.house.session()) == (403, None)


async def test_the_public_key_is_no_secret_to_sign_with(tmp_path: Path) -> None:
    """RFC 8725 section 2.1: the algorithm is the key's, not the token's."""
    async with elsewhere(tmp_path) as e:
        good = e.token().split(".")
        head = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
        mac = hmac.digest(_pem(KEY), f"{head}.{good[1]}".encode(), hashlib.sha256)
        forged = f"{head}.{good[1]}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert (await e.back(forged)).status == 403


async def test_it_is_for_the_client_whose_state_it_is(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        assert (await e.back(e.token(), "127.0.0.3")).status == 403
        assert e.house.session("127.0.0.3") is None
        assert e.house.session("127.0.0.2") is None


async def test_our_own_forms_are_off_then(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        browser, key = e.house.browser(), tmp_path / "login" / "return.pem"
        key.rename(tmp_path / "away.pem")
        form = await browser.get("/")
        (tmp_path / "away.pem").rename(key)
        assert (await browser.get("/")).location == "https://login.example.net/?state="
        assert (await browser.post("/sign-in", form.fields)).status == 403
        assert e.house.session() is None


async def test_without_a_key_there_is_no_return() -> None:
    async with house() as h:
        assert (await Elsewhere(h).back(Elsewhere(h).token())).status == 404
        assert h.session() is None


async def test_a_key_of_another_kind_lets_nobody_on(tmp_path: Path) -> None:
    async with elsewhere(tmp_path, b"-----BEGIN PUBLIC KEY-----\n") as e:
        assert (await e.back(e.token())).status == 500
        assert e.house.session() is None


async def test_p256_will_do_as_well(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with elsewhere(tmp_path, _pem(key)) as e:
        assert (await e.back(e.token(key, "ES256"))).status == 303
        assert e.house.session() is not None


@given(
    st.text(max_size=200) | st.from_regex(r"[\w-]{1,40}\.[\w-]{1,80}\.[\w-]{0,80}", fullmatch=True)
)
def test_any_text_may_come_back(text: str) -> None:
    with pytest.raises(ReturnError):
        read_return(text, _pem(KEY), "http://192.0.2.1/return", 0.0)
