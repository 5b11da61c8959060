"""The report finds in later requests what a portal's page left in a client, and nothing else."""

import pytest

from capport.report.portal_traces import traces_in


@pytest.mark.parametrize(
    ("request_says", "found"),
    [
        (("/", "", ""), []),
        (("/capport-portal/logo.png", "", ""), ["url"]),
        (("/a/capport-portal/logo.png", "", ""), []),
        (("/", '"x", W/"capport-portal"', ""), ["validator"]),
        (("/", "capport-portal", ""), []),
        (("/", "", "a=b; capport-portal=1"), ["cookie"]),
        (("/", "", "capport-portal"), []),
        (("/", "", "a=b"), []),
        (
            ("/capport-portal/", '"capport-portal"', "capport-portal="),
            ["url", "validator", "cookie"],
        ),
    ],
)
def test_traces(request_says: tuple[str, str, str], found: list[str]) -> None:
    assert list(traces_in(*request_says)) == found
