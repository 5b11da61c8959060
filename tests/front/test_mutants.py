"""The law finds what is wrong with the front: with each of these faults in it, the law fails."""

from collections import Counter
from functools import cache
from random import Random

import pytest

from capport.core.place import Place
from front.faults import Fault, put_in
from front.law import Outcome, assert_same, by_the_front, by_the_layers, sent

CLIENTS = 800


FAULTS = {
    "the Host field counts, and not the target": Fault(
        "front.request", "_authority(authority, _HTTP), slash", "_authority(host, _HTTP), slash"
    ),
    "control characters are text": Fault("front.request", r"[\t -~\x80-\xff]*+", r"[^\r\n]*+"),
    "any version is HTTP/1": Fault("front.request", r"HTTP/1\.([01])", r"HTTP/\d\.([0-9])"),
    "the client does not say when it ends": Fault(
        "front.request", 'and b"close" not in options', ""
    ),
    "a body is a request": Fault("front.request", "bool(declared or is_chunked)", "False"),
    "a chunked body is taken on trust": Fault(
        "front.conversation", " or (rest and request.is_chunked)", ""
    ),
    "bytes between requests are dropped": Fault(
        "front.conversation", "self.unread = rest\n", "self.unread = rest.lstrip()\n"
    ),
    "a line may end in LF, some day": Fault(
        "front.conversation",
        'data.count(b"\\n", start) == data.count(b"\\r\\n", max(0, start - 1))',
        "True",
    ),
    "a hello in a tunnel is handed over without its CONNECT": Fault(
        "front.conversation",
        "HandOver(unread, self.answers, self._connect)",
        'HandOver(unread, self.answers, b"")',
        "TLS is intercepted",
    ),
    "the garden is not asked for names": Fault(
        "gate",
        "Case(found, claim, dialled, request, None",
        "Case(found, None, dialled, request, None",
    ),
    "requests are not counted": Fault(
        "gate",
        "wait = self._spend(found)\n        if wait",
        "wait = None\n        if wait",
        "a rate",
    ),
    "the state does not say which page was asked for": Fault(
        "gate",
        "return verdict, self._state_for(client, verdict, url)",
        "return verdict, self._state_for(client, verdict, None)",
        "a state",
    ),
    "two Host fields are one": Fault("front.request", 'values[name] + b", " + value', "value"),
    "HEAD gets a body": Fault("front.templates", 'if asked.method != "HEAD":', "if True:"),
    "the last answer looks like any other": Fault("front.templates", "        close,\n", ""),
    "a language is as good as another": Fault("core.reply", " {language.value} ", " "),
    "an alert has one version": Fault("front.hello", "self.raw[1:3]", r'b"\x03\x03"'),
}


@cache
def corpus(policy: str) -> list[tuple[Place | None, list[bytes], Outcome]]:
    """What many clients send, and what the layers do with it."""
    all_sent = [sent(Random(seed).choice) for seed in range(CLIENTS)]
    return [(*it, by_the_layers(policy, *it)) for it in all_sent]


@pytest.mark.xdist_group("mutants of the front")
@pytest.mark.parametrize("name", FAULTS)
def test_the_law_fails_with_this_fault_in_the_front(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    clients = corpus(fault.policy)
    put_in(fault, monkeypatch)
    assert any(breaks_the_law(fault.policy, *client) for client in clients)


def breaks_the_law(
    policy: str, dialled: Place | None, pieces: list[bytes], expected: Outcome
) -> bool:
    try:
        assert_same(by_the_front(policy, dialled, pieces, Counter()), expected)
    except AssertionError:
        return True
    return False
