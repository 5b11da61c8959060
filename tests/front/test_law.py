"""The law of the front: it answers as the layers do, and what they let through it hands over whole.

For every byte string in every segmentation, with a fresh gate for each run: what the front answers,
followed by what the layers do with what it hands over, is what the layers do with all of it. So the
front may only refuse, and only what the layers refuse.
"""

from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capport.core.place import Place
from front.law import DIALLED, POLICIES, WEB, connections, holds
from proxy import hellos
from proxy.bypasses import AMBIGUOUS, INSIDE_A_TUNNEL, ODD, SEEDS, SPICE, mutated
from proxy.hellos import BROKEN, WHOLE

EXAMPLES = 60  # for each policy

GET = b"GET / HTTP/1.1\r\nHost: outside.example.com\r\n\r\n"
CONNECT = b"CONNECT outside.example.com:443 HTTP/1.1\r\nHost: outside.example.com\r\n"
MOZILLA = b"Cookie: a=b; c=d\r\nUser-Agent: Mozilla/5.0\r\n\r\n"
HELLO = hellos.records(hellos.message(hellos.server_name(b"outside.example.com")))
PROBE = b"GET /generate_204 HTTP/1.1\r\nHost: connectivitycheck.gstatic.com\r\n\r\n"
ORDINARY: list[tuple[Place | None, list[bytes]]] = [
    (WEB, [GET, GET, GET + GET, GET]),
    (WEB, [PROBE, GET[:20], GET[20:], b"HEAD" + GET[3:-2] + b"X: " + b"y" * 300 + b"\r\n\r\n"]),
    (None, [CONNECT + MOZILLA, HELLO]),
    (None, [CONNECT + MOZILLA, GET]),
    (None, [CONNECT + b"\r\n", HELLO]),
    (WEB, [HELLO[:100], HELLO[100:]]),
]

# What the front answers to these, with what it answers in every case.
ANSWERS = {
    "a garden": {"302 to a request", "alert"},
    "a state": {"302 to a request"},
    "limits": {"431 to a request"},
    "a rate": {"429 to a request"},
    "CONNECT is answered": {"511 to CONNECT"},
    "CONNECT gets an alert": {"200 to CONNECT", "alert"},
    "TLS is dropped": {"200 to CONNECT", "reset"},
    "TLS is intercepted": {"200 to CONNECT", "handed over"},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_ordinary_refusals_are_answered_by_the_front(policy: str) -> None:
    count = Counter[str]()
    for sent in ORDINARY:
        holds(policy, sent, count)
    assert set(count) >= {"511 to a request"} | ANSWERS.get(policy, set())
    assert policy == "TLS is intercepted" or "handed over" not in count


@pytest.mark.parametrize("policy", POLICIES)
def test_the_front_and_then_the_layers_do_what_the_layers_alone_do(policy: str) -> None:
    count = Counter[str]()

    @settings(max_examples=EXAMPLES)
    @given(connections())
    def check(sent: tuple[Place | None, list[bytes]]) -> None:
        holds(policy, sent, count)

    check()
    assert count["handed over"]


PLACES = ["203.0.113.9:80", "www.example.org", "192.0.2.1:22"]
POST = b"POST / HTTP/1.1\r\nHost: ORIGIN\r\n"
BYPASSES = (
    *(data for data, _ in ODD.values()),
    *(POST + fields + b"\r\n" + body for fields, body in AMBIGUOUS),
    *(CONNECT + MOZILLA + inside for inside in (*INSIDE_A_TUNNEL.values(), *WHOLE.values())),
    *(*WHOLE.values(), *BROKEN.values(), *SEEDS),
)


@pytest.mark.parametrize("dialled", [None, WEB, Place(ip_address("192.0.2.53"), 80)], ids=str)
def test_the_law_holds_for_each_known_bypass(dialled: Place | None) -> None:
    for data in {it.replace(b"ORIGIN", to.encode()) for it in BYPASSES for to in PLACES}:
        half = len(data) // 2
        for pieces in ([data], [data[:1], data[1:]], [data[:half], data[half:]]):
            holds("CONNECT gets an alert", (dialled, pieces), Counter())


@settings(max_examples=EXAMPLES)
@given(mutated(SEEDS, SPICE), st.sampled_from(PLACES), st.sampled_from(DIALLED), st.data())
def test_the_law_holds_for_mutated_requests(
    data: bytes, place: str, dialled: Place | None, draw: st.DataObject
) -> None:
    data = data.replace(b"ORIGIN", place.encode())
    at = draw.draw(st.integers(0, len(data)))
    holds("a garden", (dialled, [data[:at], data[at:]]), Counter())


def test_the_law_holds_up_to_the_last_answer_of_a_connection() -> None:
    count = Counter[str]()
    holds("a garden", (WEB, [GET * 60, GET * 60]), count)
    assert count == {"511 to a request": 100}
    odd = GET.replace(b" / ", b" * ")
    holds("a garden", (WEB, [GET * 60 + odd + GET * 60]), count)


@pytest.mark.parametrize("size", [250, 1000, 9_000, 15_000, 16_500, 60_000, 66_000])
@pytest.mark.parametrize("policy", ["a garden", "limits"])
def test_the_law_holds_for_heads_of_any_size(policy: str, size: int) -> None:
    for start in (b"X: ", b"X: y\r\nX: ", b"X: y\r\n" * 99 + b"X: ", b"X: y\r\n" * 498 + b"X: "):
        head = GET[:-2] + start
        head += b"y" * (size - len(head)) + b"\r\n\r\n"
        for method in (b"GET", b"HEAD"):
            sent = method + head[3:]
            for pieces in ([sent], [sent[:3000], sent[3000:]]):
                holds(policy, (WEB, pieces), Counter())
