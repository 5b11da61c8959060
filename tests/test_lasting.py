"""Work that must not end begins again when it fails."""

import asyncio

import pytest

from capport import lasting as module
from capport.lasting import lasting


async def test_work_that_fails_is_reported_and_begins_again_until_it_returns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    errors: list[Exception] = [KeyError("a"), KeyError("a"), RecursionError("b")]

    async def work() -> None:
        if errors:
            raise errors.pop(0)

    await lasting("The work", work)
    assert caplog.text.count("The work failed; it begins again") == 2  # a repeated one once
    assert "RecursionError" in caplog.text


async def test_it_ends_when_it_is_cancelled() -> None:
    task = asyncio.create_task(lasting("The work", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
