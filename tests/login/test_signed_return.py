"""The signed return: for one client, once, now, and signed by that login server."""

import asyncio
import errno
import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from capport.core.client import ClientId
from capport.core.session import Session
from capport.log_limits import RETURNS
from capport.login.signed_return import ReturnError, read_return
from capport.stores import StoreError
from login.house import at, house
from login.signing import KEY, OTHER, Elsewhere, elsewhere, pem_of


async def test_a_client_that_comes_back_is_online_and_may_go_on(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        answer = await e.back(e.token(lifetime=90, name="Ada"))
        welcome = await e.house.browser().follow(answer)
        assert "http://www.example.org/news" in welcome.links
        session = e.house.session()
        assert session is not None
        assert (session.seconds_remaining(e.house.clock()), session.name) == (90, "Ada")


async def test_a_head_does_not_use_it_up(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        path = f"/return?{urlencode({'g': e.token()})}"
        head = await e.house.browser().send("HEAD", path)
        assert (head.status, head.headers["Allow"], e.house.session()) == (405, "GET", None)
        assert (await e.house.browser().get(path)).status == 303


async def test_the_algorithm_may_have_its_newer_name(tmp_path: Path) -> None:
    """RFC 9864 section 2.2."""
    async with elsewhere(tmp_path) as e:
        assert (await e.back(e.token(algorithm="Ed25519"))).status == 303
        assert e.house.session() is not None


async def test_the_other_clock_may_be_ahead_of_ours(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        assert (await e.back(e.token(iat=int(time.time()) + 30))).status == 303
        assert e.house.session() is not None


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


async def test_by_many_connections_at_once_it_counts_once(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        grants, grant = [], e.house.gate.grant

        def counted(*who: Any, **how: Any) -> Session:
            grants.append(how)
            return grant(*who, **how)

        e.house.gate.grant = counted  # type: ignore[method-assign]
        token = e.token()
        pages = await asyncio.gather(*(e.back(token) for _ in range(20)))
        assert ({page.status for page in pages}, len(grants)) == ({303}, 1)


async def test_what_could_not_be_made_durable_may_come_back(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        token, grant = e.token(), e.house.gate.grant

        def full(*who: Any, **how: Any) -> Session:
            raise OSError(errno.ENOSPC, "No space left on device")

        e.house.gate.grant = full  # type: ignore[method-assign]
        assert ((await e.back(token)).status, e.house.session()) == (503, None)
        e.house.gate.grant = grant  # type: ignore[method-assign]
        assert (await e.back(token)).status == 303
        assert e.house.session() is not None


async def test_where_the_disk_fails_half_way_nothing_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with elsewhere(tmp_path) as e:
        token, records, spent = e.token(), e.house.context.records, 0
        spend = records.spend

        def full(*what: Any) -> ClientId | None:
            nonlocal spent
            spent += 1
            if spent == 2:
                raise StoreError("database or disk is full")
            return spend(*what)

        monkeypatch.setattr(records, "spend", full)
        assert ((await e.back(token)).status, e.house.session()) == (503, None)
        assert (await e.back(token)).status == 303


async def test_the_agents_link_is_good_for_the_next_time_too(tmp_path: Path) -> None:
    """RFC 8908 section 4: the same answer, but never with a state that admits no client."""
    async with elsewhere(tmp_path) as e:
        for _ in range(2):
            answer = await e.house.browser().get(
                "/api/captive-portal", Accept="application/captive+json"
            )
            _, _, state = json.loads(answer.body)["user-portal-url"].partition("?state=")
            assert (await e.back(e.token(state=state))).status == 303
            e.house.gate.revoke(e.house.client().id)


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
        {"exp": time.time() + 86400},  # when it was collected, which may be an hour ago
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
        {"jti": "a\x1b[2Jb"},
        {"lifetime": 10**400},
        {"exp": 10**400},
    ],
)
async def test_no_other_word_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with elsewhere(tmp_path) as e:
        try:
            token = e.token(**changes)
        except TypeError:  # PyJWT signs nothing but strings, and others probably do not either
            return
        page = await e.back(token)
        assert (page.status, e.house.session()) == (403, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"aud": "https://login.example.net/return"}, "aud is not http://127.0.0.1:"),
        ({"exp": time.time() - 9}, "exp is not 0 to 60 s ahead: -"),
        ({"jti": None}, 'missing the "jti" claim'),
        ({"key": OTHER}, "Signature verification failed"),
        ({"key": ec.generate_private_key(ec.SECP256R1()), "algorithm": "ES256"}, "alg is not EdD"),
        ({"state": "A" * 60}, "that state is not this portal's"),
    ],
)
async def test_the_log_says_what_is_wrong_with_a_return(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], says: str
) -> None:
    async with elsewhere(tmp_path) as e:
        assert says not in (await e.back(e.token(**changes))).text
        assert says in _told(caplog)
        assert "The signed return of 127.0.0.2 is refused" in _told(caplog)


async def test_the_log_says_that_a_return_was_used_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with elsewhere(tmp_path) as e:
        token = e.token()
        await e.back(token)
        e.house.gate.revoke(e.house.client().id)
        assert (await e.back(token)).status == 403
        assert "its state or its jti was used before" in _told(caplog)


async def test_returns_do_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with elsewhere(tmp_path) as e:
        for moments in (0, RETURNS / 2, RETURNS / 2):
            e.house.clock.at += moments
            for _ in range(5):
                await e.back("x")
        assert _told(caplog).count("is refused") == 2


def _told(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


async def test_the_public_key_is_no_secret_to_sign_with(tmp_path: Path) -> None:
    """RFC 8725 section 2.1: the algorithm is the key's, not the token's."""
    async with elsewhere(tmp_path) as e:
        good = e.token().split(".")
        head = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
        mac = hmac.digest(pem_of(KEY), f"{head}.{good[1]}".encode(), hashlib.sha256)
        forged = f"{head}.{good[1]}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert (await e.back(forged)).status == 403


async def test_it_is_for_the_client_whose_state_it_is(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        assert (await e.back(e.token(), "127.0.0.3")).status == 403
        assert e.house.session("127.0.0.3") is None
        assert e.house.session("127.0.0.2") is None


@pytest.mark.parametrize("readable", [True, False])
async def test_our_own_forms_are_off_then(tmp_path: Path, readable: bool) -> None:
    async with elsewhere(tmp_path) as e:
        browser, key = e.house.browser(), tmp_path / "login" / "return.pem"
        key.rename(tmp_path / "away.pem")
        form = await browser.get("/")
        if readable:
            (tmp_path / "away.pem").rename(key)
        else:
            key.mkdir()
        assert e.state_in(await browser.get("/")).client == e.house.client()
        assert (await browser.post("/sign-in", form.fields)).status == 403
        assert e.house.session() is None


@pytest.mark.parametrize(
    "state", ["", "x", "a%0d%0aSet-Cookie:%20a=b", "x%26user%3Droot%23", "%ff"]
)
async def test_what_is_no_state_goes_no_further(tmp_path: Path, state: str) -> None:
    async with elsewhere(tmp_path) as e:
        page = await e.house.browser().get(f"/?state={state}")
        assert e.state_in(page).client == e.house.client()
        assert page.headers["Set-Cookie"] is None


async def test_a_link_with_the_state_of_another_client_leads_on_with_ones_own(
    tmp_path: Path,
) -> None:
    async with elsewhere(tmp_path) as e:
        states = e.house.context.states
        for address in ("127.0.0.3", "127.0.0.2"):
            state = states.mint(at(address), "http://www.example.org/news")
            read = e.state_in(await e.house.browser().get(f"/?state={state}"))
            assert read.client == e.house.client()
            assert (read == states.read(state)) is (address == "127.0.0.2")


async def test_without_a_key_there_is_no_return() -> None:
    async with house() as h:
        assert (await Elsewhere(h).back(Elsewhere(h).token())).status == 404
        assert h.session() is None


async def test_a_key_of_another_kind_admits_no_client(tmp_path: Path) -> None:
    async with elsewhere(tmp_path, b"-----BEGIN PUBLIC KEY-----\n") as e:
        assert (await e.back(e.token())).status == 500
        assert e.house.session() is None


async def test_p256_will_do_as_well(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with elsewhere(tmp_path, pem_of(key)) as e:
        assert (await e.back(e.token(key, "ES256"))).status == 303
        assert e.house.session() is not None


@given(
    st.text(max_size=200) | st.from_regex(r"[\w-]{1,40}\.[\w-]{1,80}\.[\w-]{0,80}", fullmatch=True)
)
def test_any_text_may_come_back(text: str) -> None:
    with pytest.raises(ReturnError):
        read_return(text, pem_of(KEY), "http://192.0.2.1/return", 0.0)
