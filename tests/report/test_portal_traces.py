"""What a portal's page leaves in a client is found in a later request, and nothing else is."""

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
