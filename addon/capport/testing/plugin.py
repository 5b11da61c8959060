"""The pytest plugin: the fixtures `make_portal`, `portal`, `portal_kind` and `portal_policy`.

It is loaded in every run of pytest where capport is installed, so it imports nothing else until a
test asks for a fixture.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from capport.testing.portal import Portal

_MOST = 50  # requests, handshakes and sessions that are shown of a failed test
_SHOWN = pytest.StashKey["Portal"]()


@pytest.fixture(scope="session")
def portal_listen_address() -> tuple[str, int]:
    """Where the portal listens. Override it for devices on the LAN: `("0.0.0.0", 8080)`."""
    return "127.0.0.1", 0


@pytest.fixture(scope="session")
def make_portal(portal_listen_address: tuple[str, int]) -> Generator["Portal"]:
    """A portal for the whole session. It starts when a test first asks for it."""
    from capport.testing.portal import Portal

    with Portal(listen=portal_listen_address) as portal:
        yield portal


@pytest.fixture
def portal_kind() -> str:
    """The kind of portal. Override it, or parametrize tests with it."""
    return "511"


@pytest.fixture
def portal_policy() -> str:
    """The text of the portal's policy, where a login_url is optional. Override it."""
    return ""


@pytest.fixture
def portal(
    request: pytest.FixtureRequest, make_portal: "Portal", portal_kind: str, portal_policy: str
) -> "Portal":
    """The portal as it was at its start, at the same port: nobody is known, nothing is reported."""
    from capport.testing.kinds import kind_named

    if needs := kind_named(portal_kind).needs:
        pytest.skip(f"{portal_kind}: {needs} (capport behind --as {portal_kind}, as root)")
    make_portal.reset(kind=portal_kind, policy=portal_policy)
    request.node.stash[_SHOWN] = make_portal
    return make_portal


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the portal's report to a test that failed."""
    report = yield
    if report.when == "call" and report.failed and _SHOWN in item.stash:
        report.sections.append(("Captive portal", _text(item.stash[_SHOWN])))
    return report


def _text(portal: "Portal") -> str:
    """What happened, and the findings, for a person."""
    report = portal.report
    records = [str(one) for client in report.recording.clients for one in client.everything()]
    return "\n".join([f"kind: {portal.kind}", *records[-_MOST:], repr(report.findings)])
