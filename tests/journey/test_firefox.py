"""Firefox's own captive portal service in the lab, as it is shipped."""

from pathlib import Path

import pytest

import requires
from journey.conftest import LOGIN, Street
from journey.firefox import Firefox, firefox
from lab.namespaces import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.lab, requires.tool("firefox-esr")]

CHECK = "detectportal.firefox.com"
BAR = "gNotificationBox.getNotificationWithValue('captive-portal-detected')"

# What the bar's button does. The tab that Firefox has opened by itself goes first: while it starts
# up, its own first page takes that tab's place.
OPEN = """
const opened = CaptivePortalWatcher._captivePortalTab?.get();
if (opened) gBrowser.removeTab(opened);
CaptivePortalWatcher.ensureCaptivePortalTab();
"""


def click(it: Firefox, start: str, selector: str) -> None:
    """Clicks in the page at a URL that begins with `start`, once both are there."""
    wait_for(lambda: any(url.startswith(start) for url in it.urls), message=f"no page at {start}")
    element = f"document.readyState === 'complete' && document.querySelector('{selector}')"
    wait_for(lambda: it.run_in_page(start, f"return !!({element})"), message=f"no {selector}")
    it.run_in_page(start, f"({element}).click()")


@pytest.mark.timeout(600)
def test_firefox_says_sign_in_until_then_and_not_after(street: Street, tmp_path: Path) -> None:
    with firefox(tmp_path, street.client.namespace) as it:
        wait_for(lambda: it.state == Firefox.LOCKED, message="Firefox sees no portal")
        wait_for(lambda: it.run(f"return !!{BAR}"), message="Firefox shows no bar")
        assert street.requests_for(CHECK) == []
        it.trust(LOGIN, street.certificate)
        it.run(OPEN)
        click(it, f"http://{CHECK}/canonical.html", "a")  # a 511, at the page it checks with
        click(it, f"https://{LOGIN}/", "form button")
        wait_for(lambda: it.state == Firefox.UNLOCKED, message="Firefox still sees a portal")
        wait_for(lambda: it.run(f"return !{BAR}"), message="the bar is still there")
        assert street.is_known()
        assert "/canonical.html" in {asked["path"] for asked in street.requests_for(CHECK)}
