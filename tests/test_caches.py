"""Real caches between a client and the portal: none of them stores a 511, 429, 431 or 428.

RFC 6585 sections 3 to 6: responses with these status codes "MUST NOT be stored by a cache". A cache
that stored a 511 would keep clients captive after they have signed in, and those behind it with
them. Each runs as its package configures it, and also so that it stores whatever it can, answers to
POST too, by each setting that does not break the protocol (so not `proxy_ignore_headers
Cache-Control`).
"""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

import requires
from conftest import SOON, Origin, Portal, StartPortal, one_answer
from ports import free_port

USER = "nobody"  # the user of a cache if the tests run as root, which squid refuses to do
NAKED = "HTTP/1.1 {} Refused\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nsignin"
KINDS = ("text/html", "text/html", "application/json", "text/plain", "text/html")

NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=all:1m use_temp_path=off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_set_header Host $http_host;
            proxy_cache all;
            {more}
        }}
    }}
}}
"""

SQUID = """
http_port 127.0.0.1:{port}
cache_peer 127.0.0.1 parent {upstream} 0 no-query no-digest default
never_direct allow all
http_access allow all
shutdown_lifetime 0 seconds
pid_filename none
netdb_filename none
pinger_enable off
access_log none
cache_log stdio:/dev/stderr
coredump_dir {folder}
visible_hostname cache.example
memory_cache_shared off
dns_nameservers 127.0.0.1
{more}
"""

VARNISH = """
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{upstream}"; }}
{more}
"""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache and one way of configuring it.

    `greedy` if it stores a refusal that does not forbid it. `absolute` if it is a proxy for its
    clients, which ask it for a whole URL.
    """

    name: str
    tool: str
    config: str
    command: Callable[[Path, int], list[str]]
    more: str = ""
    greedy: bool = False
    absolute: bool = False

    def __str__(self) -> str:
        return self.name


def _nginx(folder: Path, port: int) -> list[str]:
    return ["nginx", "-p", str(folder), "-c", str(folder / "config"), "-e", "stderr"]


def _squid(folder: Path, port: int) -> list[str]:
    return ["squid", "-N", "-d", "1", "-n", f"capport{port}", "-f", str(folder / "config")]


def _varnish(folder: Path, port: int, *more: str) -> list[str]:
    work = ["-n", str(folder / "work"), "-s", "malloc,4m", "-j", "none"]
    return ["varnishd", "-F", "-a", f"127.0.0.1:{port}", "-f", str(folder / "config"), *work, *more]


def _varnish_for_long(folder: Path, port: int) -> list[str]:
    return _varnish(folder, port, "-p", "default_ttl=600", "-p", "default_grace=600")


CACHES = [
    Cache("nginx", "nginx", NGINX, _nginx),
    Cache(
        "nginx-any",
        *("nginx", NGINX, _nginx),
        "proxy_cache_methods GET HEAD POST; proxy_cache_valid any 10m; proxy_cache_revalidate on;"
        " proxy_cache_lock on;"
        " proxy_cache_use_stale error timeout updating http_500 http_503;",
        greedy=True,
    ),
    Cache("squid", "squid", SQUID, _squid, absolute=True),
    Cache(
        "squid-long",
        *("squid", SQUID, _squid),
        "negative_ttl 10 minutes\n"
        "refresh_pattern . 10 100% 10 override-expire override-lastmod ignore-reload",
        absolute=True,
    ),
    Cache("varnish", "varnishd", VARNISH, _varnish),
    Cache(
        "varnish-long",
        *("varnishd", VARNISH, _varnish_for_long),
        # By default, it turns each request that it looks up into a GET.
        'sub vcl_recv { if (req.method == "POST") { set req.http.X-Is = "POST"; return (hash); } }'
        "sub vcl_backend_fetch { if (bereq.http.X-Is) { set bereq.method = bereq.http.X-Is; } }"
        "sub vcl_backend_response { set beresp.ttl = 10m; set beresp.grace = 10m; }",
        greedy=True,
    ),
]
each_cache = pytest.mark.parametrize(
    "cache", [pytest.param(it, marks=requires.tool(it.tool), id=str(it)) for it in CACHES]
)
each_greedy_cache = pytest.mark.parametrize(
    "cache",
    [pytest.param(it, marks=requires.tool(it.tool), id=str(it)) for it in CACHES if it.greedy],
)


@dataclass
class Running:
    """A cache that runs, and what asks it."""

    cache: Cache
    port: int

    async def get(
        self, host: str, path: str = "/page", more: str = "", method: str = "GET"
    ) -> tuple[int, bytes]:
        """The status and the whole of the answer to a GET by way of the cache."""
        target = f"http://{host}{path}" if self.cache.absolute else path
        more += "" if method == "GET" else "Content-Length: 0\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
            answer = await asyncio.wait_for(one_answer(reader), SOON)
        finally:
            writer.close()
        return int(answer.split(b" ", 2)[1]), answer


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the cache's user may write to. pytest's own is closed to other users."""
    path = Path(tempfile.mkdtemp(prefix="cache-"))
    if os.geteuid() == 0:
        os.chown(path, pwd.getpwnam(USER).pw_uid, -1)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def running(cache: Cache, folder: Path, upstream: int) -> AsyncIterator[Running]:
    """`cache` in front of the port `upstream`, until it is done with."""
    port = free_port()
    process = _start(cache, folder, port, upstream)
    try:
        await _listens(process, port, folder)
        yield Running(cache, port)
    finally:
        _end(process)


def _start(cache: Cache, folder: Path, port: int, upstream: int) -> subprocess.Popen[bytes]:
    config = cache.config.format(folder=folder, port=port, upstream=upstream, more=cache.more)
    (folder / "config").write_text(config)
    is_root = os.geteuid() == 0
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            cache.command(folder, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            # Debian has them in /usr/sbin, which is not in everybody's PATH.
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
            start_new_session=True,
            user=USER if is_root else None,
            extra_groups=[] if is_root else None,
        )


async def _listens(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    limit = time.monotonic() + SOON
    while process.poll() is None and time.monotonic() < limit:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    said = (folder / "log").read_text()[-3000:]
    raise AssertionError(f"it does not listen ({process.poll()}):\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the cache with its children: it leads a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a child that outlived its parent


@pytest.mark.rfc(6585, "6", "MUST NOT be stored by a cache")
@each_cache
async def test_a_cache_in_front_does_not_store_a_511(
    portal: StartPortal, origin: Origin, folder: Path, cache: Cache
) -> None:
    """Section 6: each request has its own 511, and after the grant the page is there at once."""
    origin.answer = _storable(b"online")
    host = f"127.0.0.1:{origin.port}"
    async with portal() as it, running(cache, folder, it.port) as front:
        for asked, kind in enumerate(KINDS, 1):
            more = f"Accept: {kind}\r\nCache-Control: max-stale, max-age=600\r\n"
            status, answer = await front.get(host, more=more)
            assert status == 511
            assert _field(answer, b"cache-control") == b"no-store"
            assert kind.partition("/")[2].encode() in _field(answer, b"content-type")
            assert _asked_for(it, "/page") == asked
        assert origin.connections == 0
        it.grant("127.0.0.1")
        status, answer = await front.get(host)
        assert (status, answer[-6:]) == (200, b"online")
        # It does store what it may. Otherwise the test above would prove nothing.
        assert (await front.get(host))[0] == 200
        assert len(origin.heads) == 1


@pytest.mark.rfc(6585, "4", "MUST NOT be stored by a cache")
@each_cache
async def test_a_cache_in_front_does_not_store_a_429(
    portal: StartPortal, origin: Origin, folder: Path, cache: Cache
) -> None:
    """RFC 6585 section 4: MUST NOT be stored."""
    host = f"127.0.0.1:{origin.port}"
    policy = "limits:\n  unknown_requests: {count: 1, per: 1h}\n"
    async with portal(policy) as it, running(cache, folder, it.port) as front:
        statuses = [(await front.get(host))[0] for _ in range(3)]
        assert statuses == [511, 429, 429]
        assert _asked_for(it, "/page") == 3


@pytest.mark.rfc(6585, "5", "MUST NOT be stored by a cache")
@pytest.mark.rfc(6585, "3", "MUST NOT be stored by a cache")
@each_cache
async def test_a_cache_in_front_does_not_store_a_431_or_a_428(
    portal: StartPortal, origin: Origin, folder: Path, cache: Cache
) -> None:
    """After a refusal, a correct request for the same URL is answered by the origin."""
    origin.answer = _storable(b"online")
    host = f"127.0.0.1:{origin.port}"
    policy = "limits:\n  header_field: 1KiB\n  require_conditions: [127.0.0.1]\n"
    large, condition = f"X-Large: {'a' * 2000}\r\n", 'If-Match: "a"\r\n'
    async with portal(policy) as it, running(cache, folder, it.port) as front:
        it.grant("127.0.0.1")
        for status, method, wrong, method_then, right in (
            (431, "GET", large, "GET", ""),
            (428, "POST", "", "PUT", condition),  # caches drop the conditions of what they store
        ):
            path = f"/{status}"
            for asked in (1, 2):
                got, answer = await front.get(host, path, wrong, method)
                assert got == status
                assert _field(answer, b"cache-control") == b"no-store"
                assert _asked_for(it, path) == asked
            assert (await front.get(host, path, right, method_then))[0] == 200
        assert len(origin.heads) == 2


@each_greedy_cache
async def test_these_caches_would_store_a_refusal_that_does_not_forbid_it(
    folder: Path, cache: Cache
) -> None:
    """Shows that the tests can fail: without `no-store`, the second client gets the first's."""
    async with Origin().serving() as naked, running(cache, folder, naked.port) as front:
        for stored, (status, method) in enumerate(
            ((511, "GET"), (429, "GET"), (431, "GET"), (428, "POST")), 1
        ):
            naked.answer = NAKED.format(status).encode()
            for _ in range(3):
                got, _ = await front.get("www.example.com", f"/{status}", method=method)
                assert got == status
            assert len(naked.heads) == stored
            assert naked.heads[-1].startswith(method.encode())


def _storable(body: bytes) -> bytes:
    """A 200 that every cache may store for ten minutes."""
    head = (
        f"HTTP/1.1 200 OK\r\nDate: {formatdate(usegmt=True)}\r\nCache-Control: max-age=600\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _asked_for(portal: Portal, path: str) -> int:
    """How many requests for `path` the portal has had: a cache may ask for more, by itself."""
    return sum(flow.request.path == path for flow in portal.flows.requests)


def _field(answer: bytes, name: bytes) -> bytes:
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    pairs = [line.partition(b":") for line in head]
    return b", ".join(value.strip() for found, _, value in pairs if found.lower() == name)
