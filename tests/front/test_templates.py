"""A refusal from a template is the reply, whatever state is put into it."""

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capport.core.policy import Rate
from capport.core.reply import Asked, reply_to
from capport.core.verdict import (
    HeaderFieldsTooLarge,
    NetworkAuthenticationRequired,
    SignIn,
    TooManyRequests,
)
from capport.front import templates
from capport.front.templates import answer_to
from capport.gate import AtOnce
from front.law import READ

ADDRESS = ip_address("198.51.100.7")
POLICY = READ["a state"]
URL = POLICY.login_url
VERDICTS: list[AtOnce] = [
    NetworkAuthenticationRequired("", URL),
    NetworkAuthenticationRequired("", URL, 0, "Lab <Wi-Fi>"),
    NetworkAuthenticationRequired("", URL, None, None, True),
    SignIn("", URL),
    SignIn("", URL, body=False),
    TooManyRequests("", 7, Rate(600, 60.0)),
    HeaderFieldsTooLarge("", "x-large"),
    HeaderFieldsTooLarge(""),
]


@given(
    st.sampled_from(VERDICTS),
    st.sampled_from([None, "", "s", "State_1-" * 30]),
    st.sampled_from(["GET", "HEAD", "POST"]),
    st.sampled_from(["", "application/json", "text/plain"]),
    st.sampled_from(["", "de", "fr", "es"]),
    st.booleans(),
)
def test_it_has_the_status_the_fields_and_the_body_of_the_reply(
    verdict: AtOnce, state: str | None, method: str, accept: str, language: str, close: bool
) -> None:
    asked = Asked(method, accept, language)
    expected = verdict
    if isinstance(expected, NetworkAuthenticationRequired | SignIn):
        expected = replace(expected, login_url=POLICY.login_url_with(state, ADDRESS))
    reply = reply_to(expected, asked)
    status, data = answer_to(verdict, state, asked, POLICY, ADDRESS, close=close)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    fields = [tuple(field.split(": ", 1)) for field in lines]
    assert (status, line) == (reply.status, f"HTTP/1.1 {reply.status} {reply.reason}")
    assert body == reply.body
    end = [("Connection", "close")] if close else []
    date = fields.pop(len(reply.fields))
    assert fields == [*reply.fields, *end]
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT", date[1])


def test_rfc9110_6_6_1_there_is_no_date_while_the_clock_is_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for now, count in ((86_400.0 * 3, 0), (1.8e9, 1)):
        monkeypatch.setattr("time.time", lambda it=now: it)
        verdict = NetworkAuthenticationRequired("", URL)
        _, data = answer_to(verdict, "s", Asked(), POLICY, ADDRESS, close=False)
        assert data.count(b"\r\nDate: ") == count


def test_the_template_follows_the_policy() -> None:
    ours = READ["our login server"]
    for policy in (POLICY, ours, POLICY):
        verdict = NetworkAuthenticationRequired("", policy.login_url, policy.refresh)
        _, data = answer_to(verdict, "STATE", Asked(), policy, ADDRESS, close=False)
        assert policy.login_url_with("STATE", ADDRESS).encode() in data


def test_templates_are_bounded_in_number() -> None:
    for wait in range(1000):
        answer_to(TooManyRequests("", wait), None, Asked(), POLICY, ADDRESS, close=False)
    assert len(templates.kept) == templates.MOST
