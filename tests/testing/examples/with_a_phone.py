"""A phone, or another device on the LAN: a person sets the proxy there, and then opens the app."""

import pytest

from capport.testing import Portal


@pytest.fixture(scope="session")
def portal_listen_address() -> tuple[str, int]:
    return "0.0.0.0", 8080


@pytest.fixture
def portal_policy() -> str:
    return "tls: {unknown: intercept, connect: alert}\n"


def test_the_app_on_the_phone_recovers(portal: Portal) -> None:
    portal.wait_for(lambda report: report.requests or report.handshakes, seconds=300)
    portal.grant()
    portal.wait_for(
        lambda report: any(one.answered_by == "origin" for one in report.requests), seconds=300
    )
    assert not portal.report.errors()
