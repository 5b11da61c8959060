"""A client that uploads faster than it reads gets its answer (RFC 9112 section 9.6)."""

import asyncio
import http.client
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import requires
from capport.front.half_close import STAGE, Stages
from conftest import SOON, Origin, StartPortal
from proxy.mitmdump import Process, policy, started
from proxy.wire import answers, later, until

MB = 1_000_000
TIMES = 20

NODE = """
const http = require("http"), [port, size, chunked] = process.argv.slice(1).map(Number);
const headers = chunked ? {} : {"Content-Length": size};
const it = http.request({port, method: "POST", path: "http://192.0.2.80/", headers}, (answer) => {
  console.log(answer.statusCode); answer.resume(); answer.on("end", () => process.exit(0)); });
it.on("error", (error) => { console.log(error.code); process.exit(1); });
it.end(Buffer.alloc(size));
"""


def by_urllib(port: int, size: int) -> int:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{port}"})
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        opener.open(urllib.request.Request("http://192.0.2.80/", bytes(size)), timeout=SOON)
    assert b"login.example.net" in raised.value.read()
    return raised.value.code


def by_chunks(port: int, size: int) -> int:
    """Like Java's HttpURLConnection when it streams: it reads only after all is written."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    pieces = (bytes(MB) for _ in range(size // MB))
    client.request("POST", "http://192.0.2.80/", pieces, encode_chunked=True)
    return client.getresponse().status


def by_curl(port: int, size: int) -> int:
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@-"]
    proxy = f"http://127.0.0.1:{port}"
    done = subprocess.run(
        [*command, "-H", "Expect:", "-x", proxy, "http://192.0.2.80/"],
        input=bytes(size),
        capture_output=True,
        timeout=SOON,
    )
    return int(done.stdout) if not done.returncode else -done.returncode


def by_node(port: int, size: int) -> int:
    done = subprocess.run(
        ["node", "-e", NODE, str(port), str(size), "0"], capture_output=True, timeout=SOON
    )
    return int(done.stdout) if done.stdout.strip().isdigit() else -1


WAYS = {"urllib": by_urllib, "chunks": by_chunks, "curl": by_curl, "node": by_node}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mitmdump(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    folder = tmp_path_factory.mktemp("uploads")
    options = ["--set", f"portal_policy={policy(folder)}", "--set", "flow_detail=0"]
    async with started(folder, *options) as it:
        yield it


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("uploads")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "way",
    [
        *("urllib", "chunks"),
        pytest.param("curl", marks=requires.tool("curl")),
        pytest.param("node", marks=requires.tool("node")),
    ],
)
async def test_an_upload_of_20_megabytes_gets_its_511_each_time(
    mitmdump: Process, way: str
) -> None:
    got = [await asyncio.to_thread(WAYS[way], mitmdump.port, 20 * MB) for _ in range(TIMES)]
    assert got == [511] * TIMES


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("uploads")
async def test_a_longer_upload_that_says_how_long_it_is_gets_its_511(mitmdump: Process) -> None:
    assert await asyncio.to_thread(by_urllib, mitmdump.port, 150 * MB) == 511


async def test_one_that_goes_on_sending_is_read_stage_by_stage(
    portal: StartPortal, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The portal reads as long as the client sends enough, and no longer."""
    read, goes_on, piece = 0, list[bool](), bytes(32 * 1024)
    takes, go_on = Stages.takes, Stages.go_on

    def counted(stages: Stages, size: int) -> bool:
        nonlocal read
        read += size
        return takes(stages, size)

    def noted(stages: Stages) -> bool:
        goes_on.append(go_on(stages))
        return goes_on[-1]

    monkeypatch.setattr(Stages, "takes", counted)
    monkeypatch.setattr(Stages, "go_on", noted)
    head = b"POST http://192.0.2.80/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    async with portal() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(head)
        (answer,) = answers(await reader.readuntil(b"</html>\n"))
        assert answer.status == 511
        for stage in range(1, 5):
            writer.write(piece)
            await until(lambda stage=stage: read == stage * len(piece))  # type: ignore[misc]
            later(STAGE)
            await until(lambda stage=stage: len(goes_on) == stage)  # type: ignore[misc]
        writer.write(b"a")  # too little to be an upload
        later(STAGE)
        await until(lambda: len(it.keeper.connections) == 0)
        assert goes_on == [True] * 4 + [False]
        writer.close()
