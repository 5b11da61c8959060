"""An app on httpx, and a policy with a walled garden."""

import ssl

import httpx
import pytest

from capport.testing import Portal


@pytest.fixture
def portal_policy() -> str:
    return "walled_garden: [status.example.org]\n"


def test_the_garden_is_open_and_the_rest_is_not(portal: Portal) -> None:
    trusted = ssl.create_default_context(cafile=portal.ca_file)
    with httpx.Client(proxy=portal.proxy_url, verify=trusted) as client:
        assert client.get("https://status.example.org/").status_code == 200
        answer = client.get(portal.url_for("/"), headers={"Accept": "application/json"})
        assert answer.status_code == 511
        assert answer.json()["login_url"] == portal.login_url
        with pytest.raises(httpx.ProxyError, match="511"):
            client.get("https://api.example.com/")
        portal.grant()
        assert client.get("https://api.example.com/").status_code == 200
    assert not portal.report.warnings()
