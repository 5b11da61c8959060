"""Routers that share their vouchers and used states: what guests and programs see."""

import asyncio
from pathlib import Path

import pytest

import requires
from api.back_channel import api
from capport.core.negotiation import Language
from capport.core.policy import Conditions
from capport.login import vouchers
from capport.login.words import WORDS
from capport.web.shared_records import SharedRecords
from login.house import House, at, house, policy
from login.signing import elsewhere
from ports import free_port
from stores.redis_server import server
from web.accepted_terms import acceptances


def shares(h: House, url: object, folder: Path) -> SharedRecords:
    """Gives the login server the records of a router in a fleet."""
    h.context.records.close()
    records = SharedRecords(f"{url}", folder / "portal.db")
    h.context.records = records
    return records


def away() -> str:
    """The URL of a Redis that is not there."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.mark.parametrize("language", list(Language))
async def test_without_redis_a_voucher_is_refused_with_a_page_that_says_why(
    tmp_path: Path, language: Language, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        shares(h, away(), tmp_path)
        for _ in range(2):
            page = await h.browser().sign_in(f"/?lang={language}", code=vouchers.new_code())
            assert (page.status, page.headers["Retry-After"]) == (503, "10")
            assert WORDS[language].errors["away"][1] in page.text
        assert h.session() is None
    assert caplog.text.count("503: redis://127.0.0.1") == 1
    assert "not connected yet" in caplog.text


async def test_without_redis_terms_are_accepted_and_kept_on_this_router(tmp_path: Path) -> None:
    async with house(policy(conditions=Conditions.TERMS)) as h:
        records = shares(h, away(), tmp_path)
        assert (await h.browser().sign_in()).status == 303
        assert h.session() is not None
        assert [one.client for one in acceptances(records)] == ["127.0.0.2"]


async def test_without_redis_a_signed_return_is_refused_with_that_page(tmp_path: Path) -> None:
    async with elsewhere(tmp_path) as e:
        shares(e.house, away(), tmp_path)
        page = await e.back(e.token())
        assert (page.status, page.headers["Retry-After"]) == (503, "10")
        assert WORDS[Language.ENGLISH].errors["away"][1] in page.text
        assert e.house.session() is None


async def test_without_redis_a_program_is_told_that_nothing_was_changed(tmp_path: Path) -> None:
    async with api(tmp_path) as a:
        shares(a.house, away(), tmp_path)
        state = a.house.context.states.mint(at("127.0.0.2"))
        answer = await a.call("POST", "/sessions", {"state": state})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        assert answer.json["detail"].endswith("not connected yet; nothing was changed")


@requires.tool("redis-server")
async def test_one_jti_signs_in_once_at_whichever_router_and_a_state_only_where_it_is_from(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    with server(tmp_path / "redis") as redis:
        async with elsewhere(folders[0]) as one, elsewhere(folders[1]) as other:
            both = [
                shares(each.house, redis.url, folder)
                for each, folder in zip((one, other), folders, strict=True)
            ]
            for records in both * 3:
                await asyncio.to_thread(records.book.look)
            tokens = [each.token(jti="paid once") for each in (one, other)]
            state = one.house.context.states.mint(at("127.0.0.2"))
            assert (await other.back(other.token(state=state))).status == 403
            pages = await asyncio.gather(one.back(tokens[0]), other.back(tokens[1]))
            assert sorted(page.status for page in pages) == [303, 403]
