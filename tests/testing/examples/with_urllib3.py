"""An app on urllib3, whose Retry can be told to retry a 511."""

import pytest
import urllib3

from capport.testing import Portal


def test_urllib3_does_not_retry_a_511_by_itself(portal: Portal) -> None:
    with urllib3.ProxyManager(portal.proxy_url) as http:
        assert http.request("GET", portal.url_for("/")).status == 511
    assert len(portal.report.requests) == 1
    assert not portal.report.warnings()


def test_to_retry_each_5xx_at_once_is_a_finding(portal: Portal) -> None:
    hasty = urllib3.Retry(total=3, status_forcelist=range(500, 600), backoff_factor=0)
    http = urllib3.ProxyManager(portal.proxy_url, retries=hasty)
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        http.request("GET", portal.url_for("/"))
    assert "retries-511" in {finding.rule.id for finding in portal.report.warnings()}
