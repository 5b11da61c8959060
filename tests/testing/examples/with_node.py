"""An app in another language, started as a process."""

import os
import subprocess
from pathlib import Path

import pytest

from capport.testing import Portal

APP = Path(__file__).with_name("app.mjs")


def run(portal: Portal) -> "subprocess.CompletedProcess[str]":
    """Starts the app with the variables by which it finds the proxy, and trusts the origin."""
    return subprocess.run(
        ["node", APP, portal.url_for("/news")],
        env={**os.environ, **portal.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("portal_kind", ["511", "page"])
def test_the_app_prints_the_news_and_nothing_else(portal: Portal) -> None:
    portal.serve("/news", {"news": []})
    refused = run(portal)
    assert (refused.returncode, refused.stdout) == (1, "")
    portal.grant()
    assert run(portal).stdout == '{"news": []}'
    assert not portal.report.errors()
