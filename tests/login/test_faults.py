"""A fault below or beside the login server costs no client its session, voucher or turn."""

import asyncio
import errno
import http.client
import logging
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from capport.core.client import Address, ClientId, Mac, Peer
from capport.core.policy import Conditions
from capport.core.session import Session
from capport.gate import Gate
from capport.linux import Neighbours
from capport.log_limits import SeldomFilter
from capport.login import passwords, vouchers
from capport.login.throttle import FOR_ALL
from capport.stores import StoreError
from capport.stores.memory import MemoryStore
from capport.web import login_listener
from capport.web.date_reckoning import Moment
from capport.web.granting import Grants
from capport.web.records import Records
from capport.web.states import StateError
from capport.web.vouching import Vouched
from capport.web.work_thread import WorkThread
from conftest import SOON
from login.house import Browser, Clock, House, at, house, policy, until
from web.accepted_terms import acceptances

ADA, EVE = ClientId("192.0.2.7"), ClientId("02:00:00:00:00:07")


# -- the disk --------------------------------------------------------------------------------------


async def test_what_has_waited_too_long_is_not_done_any_more() -> None:
    one, begun, free, done = WorkThread("test", SOON), threading.Event(), threading.Event(), []

    def slow() -> bool:
        begun.set()
        return free.wait(SOON)

    try:
        first = asyncio.create_task(one.do(slow))
        assert await asyncio.to_thread(begun.wait, SOON)
        one.patience = -1.0
        late = asyncio.create_task(one.do(lambda: done.append("late")))
        await asyncio.sleep(0)
        free.set()
        assert await first
        with pytest.raises(OSError, match="try again"):
            await late
        one.patience = SOON
        await one.do(lambda: done.append("in time"))
        assert done == ["in time"]
    finally:
        one.close()


async def test_no_revocation_waits_for_a_grant() -> None:
    free = threading.Event()

    class Slow(MemoryStore):
        def put(self, session: Session, *, most: int | None = None, renews: bool = False) -> bool:
            if session.client == EVE:
                free.wait(SOON)
            return super().put(session, most=most, renews=renews)

    gate = Gate(policy(), Slow())
    grants = Grants(gate)
    try:
        gate.grant(ADA)
        slow = asyncio.create_task(grants.grant(EVE, lifetime=60, by="", how="", name=""))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(grants.revoke(ADA), SOON)
        assert not slow.done()
        free.set()
        assert (await slow).client == EVE
    finally:
        free.set()
        grants.close()


async def test_a_client_that_signs_out_has_no_session_left_whatever_the_disk_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        browser = h.browser()
        await browser.sign_in()
        status = await browser.get("/status")
        mac = Mac("02:00:00:00:00:07")
        h.gate.neighbours = _One(mac)
        h.gate.grant(ClientId(mac), lifetime=60)
        revoke = h.gate.store.revoke

        def full(client: ClientId) -> bool:
            revoke(client)
            raise StoreError("the disk is full")

        monkeypatch.setattr(h.gate.store, "revoke", full)
        assert (await browser.post("/sign-out", status.fields)).status == 503
        assert not list(h.gate.store.sessions())


class _One(Neighbours):
    def __init__(self, mac: Mac) -> None:
        self._mac = mac

    def find_mac(self, address: Address) -> Mac | None:
        return self._mac


async def test_a_voucher_that_admitted_no_client_stays_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code = _voucher(h)
        with monkeypatch.context() as full:
            full.setattr(h.gate.store, "put", _fails)
            assert (await h.browser().sign_in(code=code)).status == 503
        assert (await h.browser("127.0.0.3").sign_in(code=code)).status == 303
        assert (await h.browser().sign_in(code=code)).status == 403


@pytest.mark.parametrize("can_be_read", [True, False], ids=["revoked", "records unreadable"])
async def test_a_voucher_that_is_revoked_meanwhile_admits_no_client(
    monkeypatch: pytest.MonkeyPatch, can_be_read: bool
) -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code, grant = _voucher(h), h.gate.grant
        if not can_be_read:
            monkeypatch.setattr(h.context.records, "is_revoked", _gone)

        def meanwhile(client: ClientId, **how: Any) -> Session:
            if can_be_read:  # its sessions are looked up before there is one
                assert h.context.records.revoke_voucher(1, 1.0) == [client]
                assert not h.gate.revoke(client)
            return grant(client, **how)

        monkeypatch.setattr(h.gate, "grant", meanwhile)
        answer = await h.browser().sign_in(code=code)
        assert answer.status == (303 if can_be_read else 503)
        assert h.session() is None


def _gone(*_: object) -> None:
    raise StoreError("portal.db: gone")


def test_what_is_given_back_is_the_use_that_came_to_nothing() -> None:
    records, first, again = Records(None), Moment(1.0, "this", 1.0), Moment(2.0, "this", 2.0)
    [number] = records.add_vouchers([b"h"], lifetime=60, devices=1, valid=None, note="", at=first)
    assert records.use_voucher(b"h", ADA, first)
    assert records.use_voucher(b"h", ADA, again)
    records.give_back(number, ADA, again)
    assert records.use_voucher(b"h", EVE, again) is None
    records.give_back(number, ADA, first)
    assert records.use_voucher(b"h", EVE, again)
    records.close()


def test_a_file_that_was_taken_away_or_is_half_copied_is_not_written_to(tmp_path: Path) -> None:
    path, kept = tmp_path / "portal.db", tmp_path / "kept.db"
    records = Records(path)
    records.accept(ADA, "1", "en", "text", 1.0)
    path.rename(kept)
    for ask in (lambda: acceptances(records), lambda: records.accept(EVE, "1", "en", "text", 2.0)):
        with pytest.raises(StoreError, match="put it back, or restart capport"):
            ask()
    path.touch()
    with pytest.raises(StoreError, match=r"portal\.db: empty; is a backup being copied there\?"):
        records.revoke_voucher(1, 3.0)
    kept.replace(path)
    assert [one.client for one in acceptances(records)] == [ADA]
    records.close()


async def test_a_link_holds_no_longer_than_the_records_whose_secret_sealed_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "portal.db"
    Records(tmp_path / "backup.db").close()
    async with house(records=path) as h:
        state = h.context.states.mint(h.client())
        assert h.context.states.read(state).client == h.client()
        (tmp_path / "backup.db").replace(path)
        await h.context.recorded(h.context.records.look)
        with pytest.raises(StateError):
            h.context.states.read(state)
        state = h.context.states.mint(h.client())
        assert h.context.states.read(state).client == h.client()


async def test_what_fails_for_the_disk_is_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "portal.db"
    async with house(records=path) as h:
        browser: Browser = h.browser()
        form = await browser.get("/")
        path.unlink()
        assert (await browser.post("/sign-in", form.fields)).status == 503
        assert (await browser.post("/sign-in", form.fields)).status == 503
    # One for each page, of two: the form's, and the error's.
    lines = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(lines) == len({one.getMessage() for one in lines})
    assert all(str(path) in one.getMessage() and one.exc_info is None for one in lines)


def _fails(_: Session, *, most: int | None, renews: bool) -> None:
    raise StoreError("the disk is full")


# -- the client ------------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_before_the_request_is_read_is_not_the_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, take = list[object](), Vouched.taken

    def noted(vouched: Vouched, end: tuple[object, ...], by: object) -> None:
        take(vouched, end, by)
        taken.append(end)

    monkeypatch.setattr(Vouched, "taken", noted)
    async with house() as h:
        vouched, fields = h.context.vouched, (await h.browser("127.0.0.1").get("/")).fields
        form = urlencode(fields)
        _, writer = await asyncio.open_connection("127.0.0.1", h.port)
        end = writer.get_extra_info("sockname")
        vouched.connected(end, Peer(ip_address("192.0.2.7")))
        await until(lambda: end in taken, "the connection taken")
        writer.write(
            f"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(form)}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Cookie: capport={fields['_xsrf']}\r\n\r\n{form}".encode()
        )
        writer.close()
        vouched.hung_up(end)
        await until(lambda: list(h.gate.store.sessions()), "a session")
        assert [one.client for one in h.gate.store.sessions()] == ["192.0.2.7"]
        await until(lambda: not len(vouched), "the connection forgotten")


def test_a_connection_that_the_login_server_never_took_is_forgotten_at_once() -> None:
    vouched, end = Vouched(), ("192.0.2.1", 40000)
    vouched.connected(end, Peer(ip_address("192.0.2.7")))
    assert vouched.find((*end, 0, 0)) == Peer(ip_address("192.0.2.7"))
    vouched.hung_up(end)
    assert vouched.find(end) is None
    vouched.taken(end, "one")
    vouched.done(end, "one")
    vouched.connected(end, Peer(ip_address("192.0.2.7")))  # reported after it has ended
    vouched.hung_up(end)
    assert not len(vouched)


def test_the_next_connection_from_a_port_is_not_forgotten_with_the_one_before() -> None:
    vouched, end = Vouched(), ("192.0.2.1", 40000)
    vouched.connected(end, Peer(ip_address("192.0.2.7")))
    vouched.taken(end, "one")
    vouched.hung_up(end)
    vouched.connected(end, Peer(ip_address("192.0.2.8")))
    vouched.taken(end, "next")
    vouched.done(end, "one")
    assert vouched.find(end) == Peer(ip_address("192.0.2.8"))
    vouched.done(end, "next")
    assert not len(vouched)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_form_that_is_too_long_is_answered_with_a_page(*, chunked: bool) -> None:
    async with house() as h:
        fields = (await h.browser().get("/")).fields
        body = urlencode(fields | {"code": "x" * 20_000}).encode()
        answer = await asyncio.to_thread(_send, h, [body] if chunked else body)
        assert (answer.status, answer.headers.get_content_type()) == (413, "text/html")
        assert h.session() is None


async def test_what_is_longer_than_any_form_is_not_read() -> None:
    async with house() as h:
        reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
        writer.write(
            b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n"
        )
        assert b" 400 " in await asyncio.wait_for(reader.read(), SOON)
        writer.close()


def _send(h: House, body: bytes | list[bytes]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", h.port, SOON, ("127.0.0.2", 0))
    typed = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/sign-in", body, typed, encode_chunked=isinstance(body, list))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_bytes_that_are_no_request_are_a_line_of_the_log_now_and_then() -> None:
    steady = Clock()
    seldom = SeldomFilter(steady)

    def shown(level: int, at: float) -> bool:
        record = logging.LogRecord("tornado.general", level, "", 1, "Malformed", None, None)
        steady.at, record.created = at, -at  # the wall clock runs as it is set
        return seldom.filter(record)

    assert not shown(logging.INFO, 1000.0)
    long = logging.LogRecord("tornado.general", logging.ERROR, "", 1, "%s", ("x" * 9000,), None)
    steady.at = 900.0
    assert seldom.filter(long)
    assert long.getMessage() == "x" * 200
    assert [shown(logging.ERROR, 1000.0 + second) for second in range(61)].count(True) == 2


async def test_connections_that_cannot_be_taken_over_are_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[object] = []

    def fails(stream: object, who: str) -> bool:
        came.append(who)
        raise OSError(errno.ENOTCONN, "no connection any more")

    # The filters may have let a line through just now.
    for name, seldom in login_listener.QUIET.items():
        logging.getLogger(name).removeFilter(seldom)
        monkeypatch.setitem(login_listener.QUIET, name, SeldomFilter())
    async with house() as h:
        monkeypatch.setattr(login_listener, "is_here", fails)
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", h.port)
            writer.close()
        await until(lambda: len(came) == 3, "each connection")
    assert [
        record.message for record in caplog.records if record.name == "tornado.application"
    ] == ["Error in connection callback"]


async def test_nobody_fills_the_log_with_bytes_that_are_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    junk = [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: " + b"x" * 8000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
    ]
    async with house() as h:
        before = len(caplog.text)
        for sent in junk * 10:
            reader, writer = await asyncio.open_connection("127.0.0.1", h.port)
            writer.write(sent)
            await asyncio.wait_for(reader.read(), SOON)
            writer.close()
        assert len(caplog.text) - before < 2000


# -- guessing --------------------------------------------------------------------------------------


async def test_devices_that_are_made_up_to_guess_keep_no_voucher_out() -> None:
    async with house(policy(conditions=Conditions.VOUCHER)) as h:
        code = _voucher(h)
        _guessed(h)
        for wrong in ("0" * 16, "no code"):
            page = await h.browser("127.0.0.3").sign_in(code=wrong)
            assert (page.status, page.headers["Retry-After"]) == (429, "61")
            assert "not valid" in page.text or "16" in page.text
        assert (await h.browser("127.0.0.3").sign_in(code=code)).status == 303


async def test_devices_that_are_made_up_to_guess_do_not_keep_out_a_user_at_a_known_device() -> None:
    async with house(policy(conditions=Conditions.PASSWORD)) as h:
        for name in ("ada", "eve"):
            h.context.records.put_user(name, passwords.hash_password("correct horse"), 0.0)
        ada = {"name": "Ada", "password": "correct horse"}
        assert (await h.browser("127.0.0.3").sign_in(**ada)).status == 303
        h.gate.revoke(h.client("127.0.0.3").id)
        _guessed(h)
        # Ada's device is a stranger under another name, and another device under hers.
        for address, name in (("127.0.0.3", "eve"), ("127.0.0.4", "ada")):
            assert (await h.browser(address).sign_in(**ada | {"name": name})).status == 429
        wrong = ada | {"password": "wrong"}
        statuses = [(await h.browser("127.0.0.3").sign_in(**wrong)).status for _ in range(11)]
        assert statuses == [429] * 11
        h.clock.at += 1
        assert (await h.browser("127.0.0.3").sign_in(**ada)).status == 303


def _guessed(h: House) -> None:
    for n in range(FOR_ALL):
        assert h.login.throttle.attempt(at(f"10.0.0.{n}"), h.clock()) == 0


def _voucher(h: House) -> str:
    code, now = vouchers.new_code(), Moment(h.context.wall(), h.context.boot, h.clock())
    digest = vouchers.digest(code)
    assert digest
    h.context.records.add_vouchers([digest], lifetime=60, devices=1, valid=None, note="", at=now)
    return code
