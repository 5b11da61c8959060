"""The handlers of mitmproxy's log, which its addons `errorcheck` and `termlog` keep as `logger`."""

import logging
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import AddonManager


def outlive_errors_of(package: str) -> None:
    """Lets mitmproxy start although a logger of `package` has logged an error: it exits for any."""
    if errorcheck := ctx.master.addons.get("errorcheck"):
        errorcheck.logger.addFilter(lambda record: not record.name.startswith(f"{package}."))


def format_lines(addons: AddonManager, formatter: logging.Formatter) -> None:
    """Formats the lines that mitmproxy writes to its terminal, or to a journal, by `formatter`."""
    manager: Any = addons
    manager.get("termlog").logger.setFormatter(formatter)
