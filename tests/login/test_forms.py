"""The way from the sign-in page to online and back, by the forms and links of the pages alone."""

import asyncio
import http.client
import json
import logging
import re
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlencode

import pytest

from capport.core.captivity import MEDIA_TYPE, PATH
from capport.core.client import Address, ClientId, Mac, Peer
from capport.core.negotiation import Language
from capport.core.place import Place
from capport.core.policy import (
    Access,
    ClientRules,
    Conditions,
    Login,
    LoginServer,
    Sessions,
)
from capport.core.session import Session
from capport.events import EventLog
from capport.linux import Neighbours
from capport.login import passwords, vouchers
from capport.login.throttle import FREE, TERMS_FOR_ALL
from capport.login.words import WORDS
from capport.web.vouching import HEADER, sign_client
from conftest import SOON
from login.house import LOOPBACK, Browser, House, Page, at, free_port, house, policy
from web.accepted_terms import acceptances, text_of_terms

PAGE = "http://www.example.org/news?a=b&c=%22d"


async def test_a_client_that_accepts_the_terms_is_online_and_may_go_where_it_wanted() -> None:
    async with house() as h:
        state = h.context.states.mint(h.client(), PAGE)
        browser = h.browser()
        answer = await browser.sign_in(f"/?state={state}")
        assert (answer.status, h.session() is not None) == (303, True)
        welcome = await browser.follow(answer)
        assert PAGE in welcome.links
        assert "Continue to www.example.org" in welcome.text
        session = h.session()
        assert session is not None
        assert session.by == "login server"
        (accepted,) = acceptances(h.context.records)
        assert (accepted.client, session.how) == ("127.0.0.2", f"terms {accepted.version}")
        assert "Do nothing illegal here" in text_of_terms(h.context.records, accepted.version, "en")


async def test_a_sign_in_admits_no_other_client() -> None:
    async with house() as h:
        await h.browser().sign_in()
        assert h.session("127.0.0.2")
        assert h.session("127.0.0.3") is None
        assert (await h.browser("127.0.0.3").get("/status")).status == 303


async def test_signing_out_ends_the_session() -> None:
    async with house() as h:
        browser = h.browser()
        status = await browser.follow(await browser.sign_in())
        out = await browser.post("/sign-out", {"_xsrf": status.fields["_xsrf"]})
        assert h.session() is None
        assert "You are signed out" in (await browser.follow(out)).text


async def test_a_known_client_sees_its_status_and_not_the_form() -> None:
    async with house() as h:
        browser = h.browser()
        await browser.sign_in()
        h.clock.at += 3600 * 5.5
        page = await browser.follow(await browser.get("/"))
        assert "2\N{NO-BREAK SPACE}hours 30\N{NO-BREAK SPACE}minutes" in page.text


async def test_a_known_client_may_stay_longer() -> None:
    async with house() as h:
        browser = h.browser()
        await browser.sign_in()
        h.clock.at += 7 * 3600
        await browser.sign_in("/?more=1")
        session = h.session()
        assert session is not None
        assert session.seconds_remaining(h.clock()) == 8 * 3600


async def test_a_blocked_client_is_told_so_and_cannot_sign_in() -> None:
    async with house() as h:
        browser = h.browser()
        form = await browser.get("/")
        rules = ClientRules()
        rules.section(Access.BLOCKED, "lab.yaml")
        rules.add(at("127.0.0.2").address, 7)
        h.change_policy(clients=rules)
        for page in (await browser.get("/"), await browser.post("/sign-in", form.fields)):
            assert (page.status, "not allowed on this network" in page.text) == (403, True)
            assert "<dd>127.0.0.2</dd>" in page.text  # for the people who run the network
        assert h.session() is None


async def test_a_client_that_the_policy_knows_has_nothing_to_do() -> None:
    async with house() as h:
        rules = ClientRules()
        rules.section(Access.KNOWN, "lab.yaml")
        rules.add(at("127.0.0.2").address, 7)
        h.change_policy(clients=rules)
        page = await h.browser().follow(await h.browser().get("/"))
        assert "always has access" in page.text
        assert page.action is None


# -- the client ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        {"X_Forwarded_For": "127.0.0.9"},
        {"X_Real_Ip": "127.0.0.9"},
        {"Forwarded": "for=127.0.0.9"},
        {"Via": "1.1 127.0.0.9", "Client_Ip": "127.0.0.9", "True_Client_Ip": "127.0.0.9"},
    ],
)
async def test_a_header_of_the_clients_does_not_make_it_another(claim: dict[str, str]) -> None:
    async with house() as h:
        browser = h.browser()
        page = await browser.get("/", **claim)
        await browser.post("/sign-in?client=127.0.0.9&ip=127.0.0.9", page.fields, **claim)
        assert h.session("127.0.0.9") is None
        assert h.session("127.0.0.2") is not None


async def test_the_addons_header_makes_the_proxied_client_the_one_that_asks() -> None:
    async with house() as h:
        browser = h.browser("127.0.0.1")
        signed = {
            HEADER: sign_client(Peer(at("192.0.2.7").address), h.context.records.secret, h.clock())
        }
        page = await browser.get("/", **signed)
        await browser.post("/sign-in", page.fields, **signed)
        assert h.session("192.0.2.7") is not None
        assert h.session("127.0.0.1") is None


@pytest.mark.parametrize("value", ["", "192.0.2.7", "v1 192.0.2.7 1000.000 " + "0" * 64])
async def test_a_header_that_the_addon_did_not_sign_is_refused(value: str) -> None:
    async with house() as h:
        page = await h.browser().get("/", **{HEADER: value})
        assert (page.status, page.action) == (403, None)


async def test_a_header_that_the_addon_signed_is_worth_nothing_in_a_clients_hands() -> None:
    async with house() as h:
        await h.browser().sign_in()
        signed = {
            HEADER: sign_client(Peer(at("127.0.0.2").address), h.context.records.secret, h.clock())
        }
        assert (await h.browser("127.0.0.1").get("/status", **signed)).status == 200
        page = await h.browser("127.0.0.3").get("/status", **signed)
        assert (page.status, "127.0.0.2" in page.text) == (403, False)


async def test_cookies_copied_to_another_device_make_it_nobody_else() -> None:
    async with house() as h:
        browser, thief = h.browser(), h.browser("127.0.0.3")
        status = await browser.follow(await browser.sign_in())
        thief.cookies = browser.cookies
        assert (await thief.get("/status")).location == "/"
        out = await thief.post("/sign-out", status.fields)
        assert (out.status, h.session() is not None, h.session("127.0.0.3")) == (303, True, None)


async def test_a_state_of_another_client_shows_nothing_of_its_page() -> None:
    async with house() as h:
        state = h.context.states.mint(at("127.0.0.3"), PAGE)
        browser = h.browser()
        welcome = await browser.follow(await browser.sign_in(f"/?state={state}"))
        assert "example.org" not in welcome.text


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "without"),
    [
        ({}, "_xsrf"),
        ({"Cookie": "capport=2|00000000|" + "00" * 16 + "|1"}, None),
        ({"Origin": "http://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({"Origin": "http://["}, None),
        ({"Origin": "http://127.0.0.1:9"}, None),
        ({"Origin": ""}, None),
        ({"Sec_Fetch_Site": "cross-site"}, None),
        ({"Sec_Fetch_Site": "same-site"}, None),
    ],
)
@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
async def test_a_form_of_another_sites_does_nothing(
    path: str, headers: dict[str, str], without: str | None
) -> None:
    async with house() as h:
        browser = h.browser()
        page = await browser.get("/")
        if path == "/sign-out":
            await browser.post("/sign-in", page.fields)
        before = h.session()
        fields = {name: value for name, value in page.fields.items() if name != without}
        answer = await browser.post(path, fields, **headers)
        assert (answer.status, "start again" in answer.text) == (403, True)
        assert h.session() == before


async def test_a_get_changes_nothing() -> None:
    async with house() as h:
        browser = h.browser()
        page = await browser.get("/")
        await browser.get("/sign-in?" + "&".join(f"{k}={v}" for k, v in page.fields.items()))
        assert h.session() is None
        await browser.sign_in()
        assert (await browser.get("/sign-out")).status == 405
        assert h.session() is not None


async def test_the_page_before_still_works_after_another_tab_was_opened() -> None:
    async with house() as h:
        browser = h.browser()
        first = await browser.get("/")
        await browser.get("/")
        assert (await browser.post("/sign-in", first.fields)).status == 303


async def test_every_page_is_kept_from_caches_frames_and_scripts(tmp_path: Path) -> None:
    async with house() as h:
        browser = h.browser()
        pages = [await browser.get(path) for path in ("/", "/nothing", "/status", "/welcome")]
        await browser.sign_in()
        pages += [await browser.get(path) for path in ("/status", "/welcome", "/signed-out")]
        for page in pages:
            policy = page.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "script-src" not in policy
            assert "unsafe" not in policy
            assert page.headers["Cache-Control"] == "no-store"
            assert page.headers["X-Frame-Options"] == "DENY"
            assert page.headers["Server"] is None
            assert page.headers["ETag"] is None
            assert not re.search(r"<script|<iframe|\son[a-z]+=|\sstyle=", page.text)


async def test_the_cookie_cannot_be_read_by_a_script_nor_sent_by_another_site() -> None:
    async with house() as h:
        cookie = (await h.browser().get("/")).headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Domain" not in cookie


@pytest.mark.parametrize(
    "path",
    [
        "/?state=%22%3E%3Cscript%3E1%3C/script%3E&lang=%22%3E%3Cscript%3E",
        "/sign-in?state=javascript:alert(1)",
        "/?more=%22%3E%3Cscript%3E&state=" + "%22%3E" * 600,
        "/%22%3E%3Cscript%3E1",
    ],
)
async def test_nothing_of_a_request_becomes_markup(path: str) -> None:
    async with house() as h:
        page = await h.browser().get(path)
        assert "<script" not in page.text
        assert '"">' not in page.text


@pytest.mark.parametrize("host", ["www.example.org", "evil.example:80", "", "a b", "127.0.0.1.nip"])
async def test_the_pages_are_served_under_the_portals_names_only(host: str) -> None:
    async with house() as h:
        browser = h.browser()
        page = await browser.get("/", Host=host)
        assert (page.status in (400, 421), page.action) == (True, None)
        own = await browser.get("/")
        posted = await browser.post("/sign-in", own.fields, Host=host, Origin=f"http://{host}")
        assert posted.status in (400, 421)
        assert h.session() is None


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/sign-in", "/nothing", "/api/captive-portal"])
async def test_no_error_page_is_served_under_another_hosts_name(method: str, path: str) -> None:
    async with house() as h:
        page = await h.browser().send(method, path, Host="www.example.org")
        assert (page.status, page.headers["Set-Cookie"]) == (421, None)


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "/?state=%ff", {}),
        ("GET", "/nothing?lang=%ff&state=%ff&more=%ff", {}),
        ("GET", "/return?g=%ff", {}),
        ("POST", "/sign-in?lang=%ff", {"Origin": "http://["}),
        ("POST", "/sign-in", {"Content-Type": "multipart/form-data; boundary=b"}),
        ("GET", "/", {"Cookie": 'capport="; =;;\xff', "Accept-Language": "\xff;q=\xff"}),
        ("GET", "/api/captive-portal", {"Accept": ";;q=\xff,,"}),
        ("OPTIONS", "*", {}),
    ],
)
async def test_nonsense_is_answered_and_not_logged(
    caplog: pytest.LogCaptureFixture, method: str, path: str, fields: dict[str, str]
) -> None:
    """No line in the log either: a client that repeats it would fill the log."""
    async with house() as h:
        caplog.clear()
        page = await h.browser().send(method, path, "a=b" if method == "POST" else None, **fields)
        assert page.status in (200, 302, 400, 403, 404)
        assert page.body or page.location
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_trace_shows_nothing_of_what_was_sent() -> None:
    async with house() as h:
        page = await h.browser().send("TRACE", "/", Cookie="a=secret", X="secret")
        assert (page.status, page.headers["Allow"]) == (405, "GET, HEAD, POST")
        assert "secret" not in page.text + str(page.headers)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", "GET, HEAD, POST"),
        ("/sign-in", "GET, HEAD, POST"),
        ("/sign-out", "POST"),
        ("/status", "GET, HEAD"),
        ("/style.css", "GET, HEAD"),
        ("/api/captive-portal", "GET, HEAD"),
    ],
)
async def test_another_method_does_nothing_and_gets_the_allowed_ones(
    method: str, path: str, allowed: str
) -> None:
    """RFC 9110 section 15.5.6."""
    async with house() as h:
        page = await h.browser().send(method, path)
        assert (page.status, page.headers["Allow"]) == (405, allowed)
        assert h.session() is None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_an_unknown_path_is_not_found_by_any_method(method: str) -> None:
    async with house() as h:
        assert (await h.browser().send(method, "/nothing")).status == 404


@pytest.mark.parametrize(
    "path", ["/.%2e/%2e%2e/etc/passwd", "/style.css/../../x", "//evil.example/", "/logo%00"]
)
async def test_there_is_nothing_under_a_strange_path(path: str) -> None:
    async with house() as h:
        page = await h.browser().get(path)
        assert (page.status, page.location) == (404, None)


async def test_head_is_get_without_the_body() -> None:
    async with house() as h:
        get, head = [await h.browser().send(method, "/") for method in ("GET", "HEAD")]
        assert (head.status, head.body) == (200, b"")
        assert abs(int(head.headers["Content-Length"]) - len(get.body)) < 20


# -- vouchers, passwords ---------------------------------------------------------------------------


def _voucher(
    h: House, *, devices: int = 1, valid: float | None = None, lifetime: float = 3600
) -> str:
    code = vouchers.new_code()
    digest = vouchers.digest(code)
    assert digest is not None
    h.context.records.add_vouchers(
        [digest], lifetime=lifetime, devices=devices, valid=valid, note="", at=h.context.moment()
    )
    return code


async def test_a_voucher_admits_as_many_clients_as_it_says_for_as_long_as_it_says() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code = _voucher(h, devices=2)
        for address in ("127.0.0.2", "127.0.0.3"):
            typed = code.lower().replace("-", " ").replace("0", "o")
            assert (await h.browser(address).sign_in(code=typed)).status == 303
            session = h.session(address)
            assert session is not None
            assert session.seconds_remaining(h.clock()) == 3600
        third = await h.browser("127.0.0.4").sign_in(code=code)
        assert (third.status, h.session("127.0.0.4")) == (403, None)


def _less_what_was_sent(page: Page) -> str:
    """The page without its XSRF token, and without what was typed and is there to be put right."""
    return re.sub(r'name="(_xsrf|code|name)" value="[^"]*"', "", page.text)


@pytest.mark.parametrize(
    ("conditions", "field"), [(Conditions.VOUCHER, "code"), (Conditions.PASSWORD, "name")]
)
async def test_what_was_typed_is_there_to_be_put_right_but_for_the_password(
    conditions: Conditions, field: str
) -> None:
    async with house(policy(conditions=conditions)) as h:
        typed = {field: '"><b>ada</b>', "password": "Schlüssel"}
        page = await h.browser().sign_in(**typed)
        assert page.status == 403
        assert page.fields[field] == typed[field]
        assert "<b>ada" not in page.text
        assert "Schlüssel" not in page.text
        assert (await h.browser().get(f"/?{field}=eve")).fields[field] == ""


async def test_wrong_used_and_expired_vouchers_are_answered_alike() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        used = _voucher(h)
        await h.browser("127.0.0.9").sign_in(code=used)
        over = _voucher(h, valid=-1)
        revoked = _voucher(h)
        h.context.records.revoke_voucher(h.context.records.vouchers()[-1].number, 1.0)
        answers = []
        for code in (used, over, revoked, vouchers.new_code()):
            page = await h.browser().sign_in(code=code)
            answers.append((page.status, _less_what_was_sent(page)))
        assert len(set(answers)) == 1
        assert answers[0][0] == 403
        assert h.session() is None


async def test_what_cannot_be_a_code_is_called_a_slip_and_slowed_down_like_a_guess() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        browser = h.browser()
        form = (await browser.get("/")).fields
        for code in ("", "7KQ3-M9XD-2HVT", "7KQ3-M9XD-2HVT-4WPU", *(["7KQ3"] * (FREE - 3))):
            page = await browser.post("/sign-in", form | {"code": code})
            assert (page.status, "not a voucher code" in page.text) == (403, True)
        slowed = await browser.post("/sign-in", form | {"code": "7KQ3"})
        assert (slowed.status, "Retry-After" in slowed.headers) == (429, True)
        h.clock.at += 1
        assert (await browser.post("/sign-in", form | {"code": _voucher(h)})).status == 303


async def test_a_client_that_comes_back_gets_what_is_left_of_its_voucher() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code = _voucher(h)
        browser = h.browser()
        status = await browser.follow(await browser.sign_in(code=code))
        await browser.post("/sign-out", status.fields)
        h.clock.at += 1200
        await browser.sign_in(code=code)
        session = h.session()
        assert session is not None
        assert session.seconds_remaining(h.clock()) == 2400
        h.clock.at += 2400
        assert (await browser.sign_in(code=code)).status == 403


async def test_a_voucher_that_gives_no_more_time_is_left_as_it_is() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        own, short, long = _voucher(h), _voucher(h, lifetime=600), _voucher(h, lifetime=7200)
        browser = h.browser()
        await browser.sign_in(code=own)
        h.clock.at += 1200
        before = h.session()
        for code in (own, short):
            page = await browser.sign_in("/?more=1", code=code)
            assert (page.status, h.session()) == (409, before)
            assert "You have 40\N{NO-BREAK SPACE}minutes left." in page.text
            assert "does not give you more time" in page.text
            assert "aria-invalid" not in page.text
        assert [one.used for one in h.context.records.vouchers()] == [1, 0, 0]
        assert (await browser.sign_in("/?more=1", code=long)).status == 303
        session = h.session()
        assert session is not None
        assert (session.seconds_remaining(h.clock()), session.how) == (7200, "voucher 3")


async def test_asking_for_more_time_never_shortens_a_session() -> None:
    async with house() as h:
        browser = h.browser()
        form = await browser.get("/")
        given = await h.context.grants.grant(
            h.client(), lifetime=3 * 86400, by="command", how="", name="room 12"
        )
        assert (await browser.get("/?more=1")).location == "/status"
        status = await browser.get("/status")
        assert not [link for link in status.links if "more=1" in link]
        assert (await browser.post("/sign-in", form.fields)).status == 303
        assert h.session() == given


async def test_a_client_that_has_just_signed_in_is_not_offered_more() -> None:
    async with house() as h:
        browser = h.browser()
        links = (await browser.follow(await browser.sign_in())).links
        assert not [link for link in links if "more=1" in link]
        h.clock.at += 60
        assert "/?more=1" in (await browser.get("/status")).links
        more = await browser.get("/?more=1")
        assert "You have 7\N{NO-BREAK SPACE}hours 59\N{NO-BREAK SPACE}minutes left." in more.text


async def test_the_time_that_is_left_is_not_that_of_a_silence() -> None:
    async with house(replace(policy(), sessions=Sessions(lifetime=7200, idle=1200))) as h:
        browser = h.browser()
        welcome = await browser.follow(await browser.sign_in())
        assert "<strong>2\N{NO-BREAK SPACE}hours</strong>" in welcome.text
        assert "not used for 20\N{NO-BREAK SPACE}minutes, you have to" in welcome.text


async def test_a_page_that_is_open_when_the_session_ends_gives_way_to_one_that_says_so() -> None:
    async with house() as h:
        browser = h.browser()
        await browser.sign_in()
        h.clock.at += 7 * 3600
        seconds, _, place = (await browser.get("/status?lang=de")).headers["Refresh"].partition(";")
        assert (int(seconds), place) == (3601, " url=/signed-out?lang=de&over=1")
        path = place.removeprefix(" url=")
        assert (await browser.get(path)).location == "/status?lang=de"
        h.clock.at += int(seconds)
        page = await browser.get(path)
        assert "Ihre Sitzung ist beendet" in page.text
        assert page.headers["Refresh"] is None
        assert "/signed-out?lang=fr&amp;over=1" in page.text


async def test_the_welcome_says_where_to_come_back_to() -> None:
    async with house() as h:
        browser = h.browser()
        welcome = await browser.follow(await browser.sign_in("/?lang=en"))
        place = f'<a href="/?lang=en">http://127.0.0.1:{h.port}</a>'
        assert f"come back to {place}." in welcome.text


async def test_where_the_day_is_not_known_a_voucher_that_expires_has_to_wait() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        expires, for_ever = _voucher(h, valid=86400), _voucher(h)
        wall, h.context.boot = h.context.wall(), "the next boot"
        h.context.wall = lambda: 10.0
        page = await h.browser("127.0.0.2").sign_in(code=expires)
        assert (page.status, h.session("127.0.0.2")) == (503, None)
        assert (await h.browser("127.0.0.3").sign_in(code=for_ever)).status == 303
        assert (await h.browser("127.0.0.4").sign_in(code=vouchers.new_code())).status == 403
        h.context.wall = lambda: wall + 60
        assert (await h.browser("127.0.0.2").sign_in(code=expires)).status == 303


async def test_a_user_signs_in_with_its_password_and_no_other() -> None:
    async with house(policy(conditions=Conditions.PASSWORD)) as h:
        h.context.records.put_user("ada", passwords.hash_password("Schlüssel 1"), 1.0)
        wrong = await h.browser().sign_in(name="ada", password="Schlüssel 2")
        nobody = await h.browser().sign_in(name="eve", password="Schlüssel 1")
        without = [_less_what_was_sent(page) for page in (wrong, nobody)]
        assert (wrong.status, nobody.status, without[0]) == (403, 403, without[1])
        right = await h.browser().sign_in(name=" ADA ", password="Schlu\u0308ssel 1")
        assert right.status == 303
        session = h.session()
        assert session is not None
        assert session.name == "ada"


async def test_the_terms_alone_admit_no_client_where_a_voucher_is_asked_for() -> None:
    async with house() as h:
        browser = h.browser()
        form = await browser.get("/")
        h.ask(Conditions.VOUCHER)
        assert (await browser.post("/sign-in", form.fields)).status == 403
        assert h.session() is None


async def test_guessing_is_slowed_for_the_client_that_guesses() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code, browser = _voucher(h), h.browser()
        form = (await browser.get("/")).fields
        statuses = [
            (await browser.post("/sign-in", form | {"code": "0" * 16})).status for _ in range(11)
        ]
        assert statuses == [403] * 10 + [429]
        late = await browser.post("/sign-in", form | {"code": code})
        assert (late.status, late.headers["Retry-After"], h.session()) == (429, "2", None)
        assert (await h.browser("127.0.0.3").sign_in(code=code)).status == 303


async def test_many_guesses_at_once_get_no_further() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        browser = h.browser()
        form = (await browser.get("/")).fields
        guesses = [browser.post("/sign-in", form | {"code": "0" * 16}) for _ in range(30)]
        statuses = [page.status for page in await asyncio.gather(*guesses)]
        assert (statuses.count(403), statuses.count(429)) == (10, 20)


async def test_an_open_connection_guesses_no_more_than_new_ones() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        browser = h.browser()
        form = (await browser.get("/")).fields | {"code": "0" * 16}
        body = urlencode(form)
        cookie = "; ".join(f"{one.key}={one.value}" for one in browser.cookies.values())
        guess = (
            f"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        )
        last = f"{guess}Connection: close\r\n\r\n{body}"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", h.port, local_addr=("127.0.0.2", 0)
        )
        writer.write(f"{guess}\r\n{body}".encode() * 14 + last.encode())  # pipelined, too
        async with asyncio.timeout(SOON):
            answers = re.findall(rb"^HTTP/1.1 (\d+)", await reader.read(), re.MULTILINE)
        writer.close()
        assert answers == [b"403"] * 10 + [b"429"] * 5


async def test_a_client_that_signs_in_and_out_in_a_loop_has_to_wait() -> None:
    """Each time costs a write to the disk, and a line in the events, which are never counted."""
    async with house() as h:
        browser = h.browser()
        form = (await browser.get("/")).fields
        for count in range(60):  # each a form of its own: the same form again changes nothing
            form["count"] = str(count)
            assert (await browser.post("/sign-in", form)).status == 303
            assert (await browser.post("/sign-out", form)).status == 303
        form["count"] = "60"
        page = await browser.post("/sign-in", form)
        assert (page.status, page.headers["Retry-After"], h.session()) == (429, "11", None)
        assert (await h.browser("127.0.0.3").sign_in()).status == 303
        h.clock.at += 11
        assert (await browser.post("/sign-in", form)).status == 303


@pytest.mark.parametrize("conditions", Conditions)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_form_that_is_sent_twice_has_one_answer_and_one_effect(
    conditions: Conditions, *, at_once: bool
) -> None:
    async with house(policy(conditions=conditions)) as h:
        browser = h.browser()
        fields = {"code": _voucher(h), "name": "ada", "password": "a right password"}
        h.context.records.put_user("ada", passwords.hash_password(fields["password"]), 0.0)
        changed: list[ClientId] = []
        h.gate.store.watch(changed.append)
        for path, page in (("/sign-in", "/"), ("/sign-out", "/status")):
            form = (await browser.get(page)).fields | fields
            if at_once:
                first, second = await asyncio.gather(
                    browser.post(path, form), browser.post(path, form)
                )
            else:
                first, second = await browser.post(path, form), await browser.post(path, form)
            assert (first.status, second.status) == (303, 303), second.text
            assert first.location == second.location
            assert first.headers["Set-Cookie"] == second.headers["Set-Cookie"]
            assert h.client().id in changed
            assert len(changed) == 1
            changed.clear()
        assert h.session() is None


async def test_a_form_that_comes_again_late_neither_signs_in_again_nor_out() -> None:
    async with house() as h:
        browser = h.browser()
        entered = (await browser.get("/")).fields
        await browser.post("/sign-in", entered)
        left = (await browser.get("/status")).fields
        await browser.post("/sign-out", left)
        assert (await browser.post("/sign-in", entered)).status == 303
        assert h.session() is None
        assert (await browser.sign_in()).status == 303
        assert (await browser.post("/sign-out", left)).status == 303
        assert h.session() is not None


async def test_a_form_is_the_same_for_the_client_that_was_given_it_alone() -> None:
    async with house() as h:
        browser, other = h.browser("127.0.0.2"), h.browser("127.0.0.3")
        form = (await browser.get("/")).fields
        other.cookies = browser.cookies
        assert (await browser.post("/sign-in", form)).status == 303
        assert (await other.post("/sign-in", form)).status == 303
        assert h.session("127.0.0.3")


async def test_a_form_that_failed_may_be_sent_again() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        browser = h.browser()
        form = (await browser.get("/")).fields | {"code": _voucher(h)}
        put, failures = h.gate.store.put, [OSError("the disk is full")]

        def once_full(session: Session, *, most: int | None = None, renews: bool = False) -> bool:
            if failures:
                raise failures.pop()
            return put(session, most=most, renews=renews)

        h.gate.store.put = once_full  # type: ignore[method-assign]
        answers = await asyncio.gather(*(browser.post("/sign-in", form) for _ in range(3)))
        assert sorted(answer.status for answer in answers) == [303, 303, 503]
        assert h.session()


class _ComesUp(Neighbours):
    """A link on which nobody has a MAC until `mac` is known."""

    mac: Mac | None = None

    def find_mac(self, address: Address) -> Mac | None:
        return self.mac

    def is_on_link(self, address: Address) -> bool:
        return True


@pytest.mark.parametrize("conditions", Conditions)
async def test_no_session_is_for_the_bare_address_of_a_device_whose_mac_is_missing(
    conditions: Conditions,
) -> None:
    async with house(policy(conditions=conditions)) as h:
        code, mac = _voucher(h), Mac("02:00:00:00:00:07")
        h.context.records.put_user("ada", passwords.hash_password("a right password"), 0.0)
        fields = {"code": code, "name": "ada", "password": "a right password"}
        h.gate.neighbours = link = _ComesUp()
        browser = h.browser()
        form = (await browser.get("/")).fields | fields
        page = await browser.post("/sign-in", form)
        assert (page.status, "not recognised yet" in page.text) == (503, True)
        assert not list(h.gate.store.sessions())
        link.mac = Mac("02:00:00:00:00:08")  # another device has the address next
        assert (await h.browser().get("/status")).status == 303
        link.mac = mac  # the same form goes through, and the voucher is whole, once it is known
        assert (await browser.post("/sign-in", form)).status == 303
        assert {str(one.client) for one in h.gate.store.sessions()} == {mac}


class _MadeUp(Neighbours):
    """A device that has another MAC each time it is looked up."""

    def __init__(self) -> None:
        self.looked = 0

    def find_mac(self, address: Address) -> Mac | None:
        self.looked += 1
        return Mac(f"02:00:00:00:{self.looked >> 8:02x}:{self.looked & 255:02x}")


async def test_made_up_macs_fill_no_more_than_the_policy_allows_and_everybody_is_told(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with house(replace(policy(), sessions=Sessions(most=5))) as h:
        h.gate.events = EventLog(tmp_path / "events.jsonl")
        h.gate.neighbours, plain = _MadeUp(), h.gate.neighbours
        for status in [303] * 5 + [503] * 3:
            page = await h.browser().sign_in()
            assert page.status == status
        assert "This network is full" in page.text
        assert "Not possible at the moment" not in page.text
        assert len(list(h.gate.store.sessions())) == 5
        assert len(acceptances(h.context.records)) == 5
        full = "there are as many sessions as sessions.most allows: 5"
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
            f"Answering 500 or 503: {full}"
        ]
        h.gate.events.close()
        lines = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
        assert [(line["what"], line.get("repeats")) for line in lines] == [(full, None), (full, 2)]
        # A device with a session may renew it; another device is admitted when one session is over.
        h.gate.neighbours = plain
        (*_, last) = h.gate.store.sessions()
        h.gate.grant(last.client)
        h.gate.revoke(last.client)
        assert (await h.browser().sign_in()).status == 303


async def test_devices_that_are_made_up_accept_the_terms_no_faster_than_a_crowd() -> None:
    async with house() as h:
        h.gate.neighbours = _MadeUp()
        for _ in range(TERMS_FOR_ALL.count):
            assert h.login.often.accept_terms(h.clock()) == 0
        page = await h.browser().sign_in()
        assert (page.status, page.headers["Retry-After"]) == (429, "2")
        assert not list(h.gate.store.sessions())
        h.clock.at += 1
        for _ in range(10):
            assert (await h.browser().sign_in()).status == 303
        assert (await h.browser().sign_in()).status == 429


# -- what an operator makes of it ------------------------------------------------------------------


@pytest.mark.parametrize("language", list(Language))
async def test_the_pages_are_in_the_clients_language(language: Language) -> None:
    async with house() as h:
        browser, words = h.browser(), WORDS[language]
        page = await browser.get("/", Accept_Language=f"{language}-XX, zz;q=0.5")
        assert page.headers["Content-Language"] == language
        assert f'<html lang="{language}">' in page.text
        assert words.accept in page.text
        other = await browser.get(f"/?lang={language}", Accept_Language="zz")
        assert words.lead["terms"] in other.text
        signed_in = await browser.post("/sign-in", other.fields)
        assert words.online in (await browser.follow(signed_in)).text


@pytest.mark.parametrize("language", list(Language))
async def test_a_form_that_is_over_is_said_so_in_the_clients_language(language: Language) -> None:
    async with house() as h:
        browser, words = h.browser(), WORDS[language]
        for form, fields in (({}, {"Accept_Language": language}), ({"lang": str(language)}, {})):
            page = await browser.post("/sign-in", form, **fields)
            assert (page.status, words.errors["form_over"][0] in page.text) == (403, True)
            assert page.headers["Content-Language"] == language


@pytest.mark.parametrize("language", list(Language))
async def test_a_client_that_stays_sees_how_long_is_left_and_what_it_accepts(
    language: Language,
) -> None:
    async with house() as h:
        browser, words = h.browser(), WORDS[language]
        form = await browser.get(f"/?lang={language}")
        assert words.by_staying not in form.text
        await browser.post("/sign-in", form.fields)
        h.clock.at += 6 * 3600
        status = await browser.get(f"/status?lang={language}")
        assert f"{words.left} <strong>{words.time(7200)}</strong>" in status.text
        assert f"<dd>{words.by['terms']}</dd>" in status.text
        more = await browser.get(f"/?more=1&lang={language}")
        assert words.by_staying in more.text
        assert words.by_signing_in not in more.text


async def test_the_operators_terms_are_shown_and_what_was_accepted_is_kept(tmp_path: Path) -> None:
    (tmp_path / "login").mkdir()
    terms = tmp_path / "login" / "terms.md"
    terms.write_text("# House rules\n\nBe *kind*. <b onclick=x>No</b> <script>1</script>", "utf-8")
    async with house(policy(file=tmp_path / "lab.yaml")) as h:
        browser = h.browser()
        form = await browser.get("/")
        assert "<em>kind</em>" in form.text
        assert "<script" not in form.text
        terms.write_text("# House rules\n\nBe very kind.", "utf-8")
        changed = await browser.post("/sign-in", form.fields)
        assert (changed.status, "just changed" in changed.text, h.session()) == (409, True, None)
        await browser.post("/sign-in", changed.fields)
        (accepted,) = acceptances(h.context.records)
        kept = text_of_terms(h.context.records, accepted.version, accepted.language)
        assert kept == "# House rules\n\nBe very kind."


async def test_terms_that_cannot_be_read_admit_no_client(tmp_path: Path) -> None:
    (tmp_path / "login").mkdir()
    (tmp_path / "login" / "terms.md").write_bytes(b"\xff\xfe\x00")
    async with house(policy(file=tmp_path / "lab.yaml")) as h:
        page = await h.browser().get("/")
        assert page.status in (500, 503)
        assert page.action is None
        assert "Traceback" not in page.text


async def test_one_page_can_be_replaced_and_mended_while_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    templates = tmp_path / "login" / "templates"
    templates.mkdir(parents=True)
    (templates / "status.html").write_text("Hello {{ client.address }}", "utf-8")
    async with house(policy(file=tmp_path / "lab.yaml")) as h:
        browser = h.browser()
        await browser.sign_in()
        assert (await browser.get("/status")).text == "Hello 127.0.0.2"
        (templates / "status.html").write_text("Hello\n{% nonsense %}", "utf-8")
        broken = await browser.get("/status")
        assert (broken.status, "nonsense" in broken.text) == (500, False)
        (line,) = (
            r.getMessage() for r in caplog.records if "Answering 500" in r.msg and not r.exc_info
        )
        assert "login/templates/status.html:2: " in line
        assert "nonsense" in line
        (templates / "status.html").unlink()
        assert "You are online" in (await browser.get("/status")).text


async def test_the_operators_logo_and_colours_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "login"
    folder.mkdir()
    (folder / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", "utf-8")
    (folder / "theme.css").write_text(":root { --accent: #0b57d0 }", "utf-8")
    async with house(policy(file=tmp_path / "lab.yaml")) as h:
        page = await h.browser().get("/")
        (logo,) = set(re.findall(r'"(/logo\?v=\w+)"', page.text))
        got = await h.browser().get(logo)
        assert got.headers["Content-Type"] == "image/svg+xml"
        assert "sandbox" in got.headers["Content-Security-Policy"]
        assert "immutable" in got.headers["Cache-Control"]
        (style,) = re.findall(r'"(/style\.css\?v=\w+)"', page.text)
        assert "#0b57d0" in (await h.browser().get(style)).text


# -- faults ----------------------------------------------------------------------------------------


async def test_without_a_record_of_the_acceptance_nobody_gets_on(tmp_path: Path) -> None:
    async with house(records=tmp_path / "portal.db") as h:
        browser: Browser = h.browser()
        form = await browser.get("/")
        (tmp_path / "portal.db").rename(tmp_path / "away.db")
        page = await browser.post("/sign-in", form.fields)
        assert (page.status, h.session()) == (503, None)
        assert "portal.db" not in page.text
        (tmp_path / "away.db").rename(tmp_path / "portal.db")
        assert (await browser.post("/sign-in", page.fields | form.fields)).status == 303


async def test_a_policy_without_a_login_server_has_none() -> None:
    async with house() as h:
        browser = h.browser()
        form = await browser.get("/")
        h.change_policy(login_server=None)
        assert (await browser.post("/sign-in", form.fields)).status == 503
        assert h.session() is None
        await h.listener.follow()
        assert h.listener.places == ()


async def test_the_login_server_listens_at_each_of_its_addresses() -> None:
    """And the API names the page at an address of the client's family."""
    one, other = Place(LOOPBACK, free_port()), Place(ip_address("::1"), free_port())
    both = replace(
        policy(),
        login_url=f"https://{one}/",
        login_place=one,
        other_login=Login(f"https://{other}/", other),
        login_server=LoginServer((one, other)),
    )
    async with house(both) as h:
        assert h.listener.places == (one, other)
        for place in (one, other):
            asked = http.client.HTTPConnection(str(place.host), place.port, timeout=SOON)
            await asyncio.to_thread(asked.request, "GET", PATH, None, {"Accept": MEDIA_TYPE})
            answer = await asyncio.to_thread(asked.getresponse)
            document = json.loads(await asyncio.to_thread(answer.read))
            assert document["user-portal-url"].startswith(f"https://{place}/?state=")
            asked.close()


async def test_where_one_address_cannot_be_had_it_listens_at_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = Place(LOOPBACK, free_port())
        places = (free, Place(LOOPBACK, taken.getsockname()[1]))
        with pytest.raises(OSError, match="cannot listen on ") as caught:
            async with house(replace(policy(), login_server=LoginServer(places))):
                pass
        assert str(places[1]) in str(caught.value)
        with socket.create_server(("127.0.0.1", free.port)):
            pass


async def test_a_new_policy_moves_the_login_server() -> None:
    async with house() as h:
        listening = h.gate.policy.login_server
        assert listening is not None
        elsewhere = Place(LOOPBACK, free_port())
        h.change_policy(login_server=replace(listening, listen=(elsewhere,)))
        await h.listener.follow()
        assert h.listener.places == (elsewhere,)
        before = h.port
        h.ask(Conditions.VOUCHER)
        await h.listener.follow()
        assert h.port == before
        assert "voucher" in (await h.browser().get("/")).text
