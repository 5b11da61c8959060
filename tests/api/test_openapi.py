"""The API does what its OpenAPI document says: schemathesis asks, and compares the answers."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import requires
from capport.api.back_channel import BackChannel
from capport.api.call_handler import Call
from capport.api.tokens import new_token, token_digest
from capport.core.client import ClientId
from capport.core.place import Place
from login.house import LOOPBACK, House, at, house

EXAMPLES = 25
"""For each operation, in addition to the boundaries of every value, which are more."""


@dataclass
class Api:
    """The API on TCP, and a token for it. `answered`: how often, by handler and status."""

    house: House
    url: str
    token: str
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)


@asynccontextmanager
async def api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with house() as h:
        channel = BackChannel(h.context, folder / "api.sock", Place(LOOPBACK, 0))
        channel.start()
        token = new_token()
        h.context.records.put_token("schemathesis", token_digest(token), 0.0)
        one = Api(h, f"http://127.0.0.1:{channel.port}", token)

        def on_finish(call: Call) -> None:
            one.answered[type(call).__name__, call.get_status()] += 1

        monkeypatch.setattr(Call, "on_finish", on_finish)
        try:
            yield one
        finally:
            await channel.stop()


async def _schemathesis(one: Api, folder: Path, config: str, *options: str) -> None:
    (folder / "schemathesis.toml").write_text(config)
    process = await asyncio.create_subprocess_exec(
        *(str(requires.SCHEMATHESIS), "--no-color", "run", f"{one.url}/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {one.token}", "--checks", "all"),
        *("--max-examples", str(EXAMPLES), "--generation-deterministic"),
        *("--no-shrink", "--request-timeout", "60", *options),
        cwd=folder,
        env=os.environ | {"HOME": str(folder), "NO_PROXY": "*"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, said.decode()


@requires.schemathesis()
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_answer_is_as_the_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api(tmp_path, monkeypatch) as one:
        one.house.gate.grant(ClientId("192.0.2.7"), lifetime=3600)
        await _schemathesis(one, tmp_path, "")
        operations = {name for name, _ in one.answered}
        assert operations >= {"OneState", "AllSessions", "OneSession", "Explain", "Description"}
        for good in (
            ("AllSessions", 200),
            ("AllSessions", 201),
            ("Explain", 200),
            ("OneSession", 404),
        ):
            assert one.answered[good] > 0, good
        assert not [key for key in one.answered if key[1] >= 500]


LIVE = """
[[operations]]
include-name = "{}"
parameters = {{ {} = "{}" }}
"""


@requires.schemathesis()
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_what_there_is_is_shown_as_the_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api(tmp_path, monkeypatch) as one:
        one.house.gate.grant(ClientId("192.0.2.7"), lifetime=3600)
        state = one.house.context.states.mint(at("192.0.2.7"), "http://www.example.org/")
        live = (
            ("GET /api/v1/states/{state}", "state", state),
            ("GET /api/v1/sessions/{client}", "client", "192.0.2.7"),
            ("PATCH /api/v1/sessions/{client}", "client", "192.0.2.7"),
        )
        await _schemathesis(
            *(one, tmp_path, "".join(LIVE.format(*each) for each in live)),
            *("--phases", "examples,coverage,fuzzing"),
            *(part for operation, _, _ in live for part in ("--include-name", operation)),
        )
        for good in ("OneState", "OneSession"):
            assert one.answered[good, 200] > 0, one.answered
