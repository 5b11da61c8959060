"""No test of enforcement passes over a crash that mitmproxy only logs."""

import logging
from collections.abc import Iterator

import pytest

CRASHES = ("has crashed", "No verdict in RefusalLayer")


@pytest.fixture(autouse=True)
def nothing_crashed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """mitmproxy logs what a layer raises, and leaves the client without an answer."""
    with caplog.at_level(logging.WARNING):
        yield
    crashes = [
        record
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if any(text in record.getMessage() for text in CRASHES)
    ]
    for record in crashes:
        text = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        pytest.fail(f"{record.getMessage()}\n{text}")
