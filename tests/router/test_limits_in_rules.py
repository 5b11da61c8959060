"""The rules for `limits`, as text: what they drop, and which limits hold for known clients."""

from pathlib import Path

import pytest

from capport.core.policy import Policy
from capport.policy import policy_file
from capport.router import ruleset
from lab.network import POLICY


def policy_with(text: str) -> Policy:
    whole = POLICY.replace("{folder}", "/tmp") + text
    return policy_file.parse(whole, "lab.yaml", Path("/"))


def rules(text: str) -> str:
    return ruleset.ruleset(policy_with(text))


def test_rules_have_only_what_the_limits_need() -> None:
    assert "dropped" not in rules("")
    assert "conditional" not in rules("")
    drops = "limits: {drop_after: {count: 1, per: 1m}}\n"
    assert "dropped" in rules(drops)
    assert "dropped_known" not in rules(drops)
    assert "dropped_known" in rules(drops + "http: {known: inspect}\n")
    conditional = "limits: {require_conditions: [a.example, 192.0.2.9, '2001:db8::9']}\n"
    assert "elements = { 192.0.2.9 }" in rules(conditional)
    assert "elements = { 2001:db8::9 }" in rules(conditional)
    assert "conditional" not in rules(conditional + "http: {known: inspect}\n")


@pytest.mark.parametrize(
    ("limits", "more", "said"),
    [
        ("requests: {count: 1, per: 1m}", "", ["past limits.requests: "]),
        (
            "requests: {count: 1, per: 1m}, header_field: 1KiB, header_section: 2KiB",
            "",
            ["past limits.requests, limits.header_field, limits.header_section: "],
        ),
        ("requests: {count: 1, per: 1m}", "http: {known: inspect}\n", []),
        ("unknown_requests: {count: 1, per: 1m}, drop_after: {count: 1, per: 1m}", "", []),
        ("require_conditions: [b.example, a.example]", "", ["port 80 of a.example, b.example "]),
    ],
)
def test_each_limit_that_known_clients_do_not_meet_is_named(
    limits: str, more: str, said: list[str]
) -> None:
    found = ruleset.unmet(policy_with(f"limits: {{{limits}}}\n{more}"))
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
