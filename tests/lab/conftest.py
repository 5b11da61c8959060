"""The lab for tests: brought up once for each module that asks for it."""

import json
from collections.abc import Iterator

import pytest

import requires
from json_schemas import wrong_events
from lab.network import Lab


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two clients, the router with the portal, and the origin."""
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(clients=2, name=request.module.__name__.rpartition("_")[2]) as it:
        yield it
        lines = (it.folder / "events.jsonl").read_text().splitlines()
        assert wrong_events(map(json.loads, lines)) == []
