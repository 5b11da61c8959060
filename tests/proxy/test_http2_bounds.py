"""What HTTP/2 of clients and of origins costs: processor time of the one thread that reads it."""

import contextlib
import time

import pytest
from h2.config import H2Configuration
from h2.exceptions import ProtocolError
from hypothesis import given
from hypothesis import strategies as st

from capport.core.cost import HEAD, HELD, INPUT
from capport.proxy.internals.http2_bounds import (
    FRAME,
    FRAMES,
    FRAMES_A_SECOND,
    PREFACE,
    BoundConnection,
    Frames,
    check_fields,
)
from proxy.http2_worst import ANSWERED, ASKED, PING, SETTINGS, WINDOW_UPDATE, WORST, frame


def connected(*, client: bool) -> BoundConnection:
    """A connection as mitmproxy makes it: to an origin, or of a client."""
    it = BoundConnection(H2Configuration(client_side=client, header_encoding=False))
    it.initiate_connection()
    if client:
        it.send_headers(
            1,
            [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")],
        )
    it.data_to_send()
    it.receive_data((b"" if client else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + frame(SETTINGS))
    it.data_to_send()
    return it


def cost(data: bytes, *, client: bool) -> float:
    """Seconds to read it in the usual pieces: the lowest of three, as the machine may be busy."""
    took = []
    for _ in range(3):
        it = connected(client=client)
        began = time.thread_time()
        try:
            for at in range(0, len(data), 16384):
                it.receive_data(data[at : at + 16384])
                it.data_to_send()
        except ProtocolError:
            pass
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("of", ["a client", "an origin"])
@pytest.mark.parametrize("worst", WORST)
def test_64_kib_hold_the_loop_for_less_than_20_ms(worst: str, of: str) -> None:
    client, head = of == "an origin", ANSWERED if of == "an origin" else ASKED
    assert len(WORST[worst](INPUT, head)) > INPUT * 0.9
    for size in (2000, 4000, 8000, INPUT // 2, INPUT):
        assert cost(WORST[worst](size, head), client=client) < HELD


def test_as_many_frames_as_are_worth_it_are_read() -> None:
    frames = Frames(skip=0, now=lambda: 0.0)
    frames.read(frame(PING, bytes(8)) * FRAMES)
    with pytest.raises(ProtocolError, match="too many frames"):
        frames.read(frame(PING, bytes(8)))


def test_time_and_what_is_sent_make_room_for_more_frames() -> None:
    clock = [0.0]
    frames = Frames(skip=0, now=lambda: clock[0])
    for _ in range(10):
        frames.read(frame(PING, bytes(8)) * FRAMES)
        clock[0] += FRAMES / FRAMES_A_SECOND
    for _ in range(10):
        frames.read(frame(0, bytes(FRAME), 0, 1) * 100)  # 1.6 MB, which earns more than it costs
        frames.read(frame(WINDOW_UPDATE, bytes(4)) * (FRAMES - 1))
        frames.sent(512 * FRAMES)
    with pytest.raises(ProtocolError, match="too many frames"):
        frames.read(frame(PING, bytes(8)) * (FRAMES + 1))


@given(st.lists(st.integers(1, 300), max_size=60))
def test_frames_are_counted_the_same_however_they_are_cut(cuts: list[int]) -> None:
    sent = PREFACE + frame(SETTINGS) + frame(0, bytes(3000), 0, 1) + frame(9, b"x", 0, 1)
    frames = Frames(skip=len(PREFACE))
    for cut in [*cuts, len(sent)]:
        frames.read(sent[:cut])
        sent = sent[cut:]
    with pytest.raises(ProtocolError, match=f"a frame of {FRAME + 1} bytes"):
        frames.read((FRAME + 1).to_bytes(3) + bytes(6))


def test_a_header_section_has_an_end() -> None:
    frames = Frames(skip=0)
    frames.read(frame(1, bytes(FRAME), 0, 1))
    for _ in range(HEAD // FRAME - 1):
        frames.read(frame(9, bytes(FRAME), 0, 1))
    with pytest.raises(ProtocolError, match="a header section of more than"):
        frames.read(frame(9, b"x", 0, 1))


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z-]{1,30}", fullmatch=True), st.text("abc XYZ09\xe9", max_size=300)
        ),
        max_size=60,
    )
)
def test_what_any_client_says_is_a_header_section(fields: list[tuple[str, str]]) -> None:
    said, heard = connected(client=False), connected(client=False)
    for _ in range(2):  # the second uses the table that the first has filled
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/")]
        block = said.encoder.encode([*head, *fields])
        check_fields(block)
        assert len(list(heard.decoder.decode(block, raw=True))) == len(head) + len(fields)


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_header_section_or_an_error(noise: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        check_fields(noise)
