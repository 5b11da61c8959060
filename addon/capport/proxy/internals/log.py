"""Adjusts mitmproxy's log handlers: the `logger` of its addons `errorcheck` and `termlog`."""

import logging
from typing import Any

from mitmproxy import ctx
from mitmproxy.addonmanager import AddonManager


def outlive_errors_of(package: str) -> None:
    """Lets mitmproxy start although `package` has logged an error, at which it would exit."""
    if errorcheck := ctx.master.addons.get("errorcheck"):
        errorcheck.logger.addFilter(lambda record: not record.name.startswith(f"{package}."))


def format_lines(addons: AddonManager, formatter: logging.Formatter) -> None:
    """Formats the lines that mitmproxy writes to its terminal, or to a journal."""
    manager: Any = addons
    manager.get("termlog").logger.setFormatter(formatter)
