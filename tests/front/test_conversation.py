"""The front itself: what it answers, what it keeps, and when it hands over."""

import pytest
from hypothesis import given

from capport.core.client import ClientId
from capport.core.cost import FIELDS, HEAD, LINE
from capport.core.place import Place
from capport.front.conversation import Alert, Answer, Conversation, HandOver
from capport.front.request import remembered
from capport.gate import Gate
from front.law import PEER, WEB, connections, gate
from proxy import hellos

GET = b"GET / HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"
CONNECT = b"CONNECT outside.example.com:443 HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"
HELLO = hellos.records(hellos.message(hellos.server_name(b"outside.example.com")))


def conversation(
    policy: str = "a garden", dialled: Place | None = WEB
) -> tuple[Gate, Conversation]:
    asked = gate(policy)
    return asked, Conversation(asked, PEER, dialled)


def test_a_request_is_answered_and_the_connection_stays_open() -> None:
    _, it = conversation()
    act = it.receive(GET)
    assert isinstance(act, Answer)
    assert (act.status, act.close, act.head, act.dialled) == (511, False, GET, WEB)
    assert act.verdict.because == f"{PEER.address} has no session"
    assert it.receive() is None


def test_requests_that_come_at_once_are_answered_one_by_one() -> None:
    _, it = conversation()
    acts = [it.receive(GET * 3), it.receive(), it.receive(), it.receive()]
    assert [type(act) for act in acts] == [Answer, Answer, Answer, type(None)]


def test_what_is_handed_over_begins_at_the_end_of_the_last_answered_request() -> None:
    _, it = conversation()
    odd = GET.replace(b"GET", b"get")
    assert isinstance(it.receive(GET + odd[:5]), Answer)
    assert it.receive() == HandOver(odd[:5], 1)


def test_a_client_that_becomes_known_is_handed_over_at_its_next_request() -> None:
    asked, it = conversation()
    assert isinstance(it.receive(GET + GET[:9]), Answer)
    assert it.receive() is None
    asked.grant(ClientId(str(PEER.address)), lifetime=60.0)
    assert it.receive(GET[9:] + b"more") == HandOver(GET + b"more", 1)


def test_a_client_that_becomes_known_in_a_tunnel_is_handed_over_with_its_connect() -> None:
    asked, it = conversation("CONNECT gets an alert", None)
    answer = it.receive(CONNECT)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.close) == (200, False)
    asked.grant(ClientId(str(PEER.address)), lifetime=60.0)
    assert it.receive(HELLO) == HandOver(HELLO, 0, CONNECT)


def test_rfc6585_7_4_credentials_are_not_kept() -> None:
    secrets = b"cookie: a=secret\r\nAuthorization: secret\r\nProxy-Authorization: secret\r\n\r\n"
    _, it = conversation("CONNECT gets an alert", None)
    answer = it.receive(CONNECT[:-2] + secrets)
    assert isinstance(answer, Answer)
    assert (answer.request.cookies, answer.request.authorizations) == (1, 2)
    assert it.hand_over() == HandOver(b"", 0, CONNECT)
    for dialled in (None, WEB):
        _, it = conversation(dialled=dialled)
        assert isinstance(it.receive(GET[:-2] + secrets), Answer)
    assert not [head for head, _ in remembered if b"secret" in head]


@given(connections())
def test_nothing_of_a_known_client_is_answered(sent: tuple[Place | None, list[bytes]]) -> None:
    dialled, pieces = sent
    asked, it = conversation(dialled=dialled)
    asked.grant(ClientId(str(PEER.address)), lifetime=60.0)
    so_far = b""
    for piece in pieces:
        so_far += piece
        if act := it.receive(piece):
            assert act == HandOver(so_far, 0)
            break


def test_a_body_is_neither_awaited_nor_read() -> None:
    _, it = conversation()
    head = GET[:-2] + b"Content-Length: 1000000000\r\n\r\n"
    act = it.receive(head + b"x" * 1000)
    assert isinstance(act, Answer)
    assert (act.close, act.request.declared) == (True, 1_000_000_000)
    assert b"\r\nConnection: close\r\n" in act.data


@pytest.mark.parametrize("beginning", [GET[:-2], HELLO[:-1]], ids=["a head", "a hello"])
def test_what_comes_byte_by_byte_is_kept_once_and_within_bounds(beginning: bytes) -> None:
    _, it = conversation()
    for at in range(len(beginning)):
        assert it.receive(beginning[at : at + 1]) is None
    assert it.hand_over() == HandOver(beginning, 0)


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (GET[:-2] + b"X: " + b"y" * 60_000, b"y" * (HEAD - 60_000)),
        (b"GET /" + b"y" * 16_000, b"y" * (LINE - 16_000)),
        (GET[:-2] + b"X: y\r\n" * (FIELDS - 2), b"X: y\r\nX: y\r\n"),
        (GET[:-2] + b"X: " + b"y" * 60_000, b"\n"),
    ],
    ids=["too long", "a line too long", "too many fields", "a bare LF"],
)
def test_a_head_without_an_end_is_handed_over_once_it_cannot_become_ordinary(
    beginning: bytes, more: bytes
) -> None:
    _, it = conversation()
    assert it.receive(beginning) is None
    assert it.receive(more) == HandOver(beginning + more, 0)


def test_a_head_of_60_kb_is_answered_in_any_pieces() -> None:
    head = GET[:-2] + b"X: " + b"y" * 60_000 + b"\r\n\r\n"
    for cut in (1, 2, 3, len(head) - 3, len(head) - 2, len(head) - 1):
        _, it = conversation()
        assert it.receive(head[:cut]) is None
        act = it.receive(head[cut:] + head)
        assert isinstance(act, Answer)
        assert (act.status, act.head) == (511, head)
        assert isinstance(it.receive(), Answer)  # the second request, which came with the first
        assert it.receive() is None


@pytest.mark.parametrize(
    ("policy", "data"), [("a garden", HELLO[:2] + b"\x03" + HELLO[3:]), ("TLS is dropped", HELLO)]
)
def test_a_refused_handshake_gets_the_alert_or_a_reset(policy: str, data: bytes) -> None:
    _, it = conversation(policy)
    act = it.receive(data)
    assert isinstance(act, Alert)
    dropped = policy == "TLS is dropped"
    assert act.data == (b"" if dropped else b"\x15\x03\x03\x00\x02\x02\x31")
    assert (act.close, act.hello.sni) == (True, "outside.example.com")


@pytest.mark.parametrize("part", ["client", "refusal", "state", "refused_handshake"])
def test_if_the_gate_raises_all_can_be_handed_over(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    asked, it = conversation()
    monkeypatch.setattr(asked, part, broken)
    data = HELLO if part == "refused_handshake" else GET
    with pytest.raises(RuntimeError):
        it.receive(data)
    assert it.hand_over() == HandOver(data, 0)


@pytest.mark.parametrize(
    ("request_", "ends_all"),
    [
        (GET, False),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), True),
        (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), True),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"), False),
        (GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), False),
    ],
)
def test_a_client_has_said_all_if_it_closes_and_sends_no_body(
    request_: bytes, ends_all: bool
) -> None:
    _, it = conversation()
    act = it.receive(request_)
    assert isinstance(act, Answer)
    assert act.ends_all is ends_all


def test_a_client_may_send_more_after_its_connect() -> None:
    _, it = conversation("CONNECT is answered", None)
    act = it.receive(CONNECT)
    assert isinstance(act, Answer)
    assert (act.close, act.ends_all) == (True, False)
