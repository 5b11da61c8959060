"""What a refusal costs: processor time for each, beside mitmproxy's own, Squid's and nginx's.

Each server answers with 511 and a page of 2 KB, but for mitmproxy's `block_list`, which has no
page. Processor time is user and system time of all processes of a server, from /proc. As root, all
of it runs in a network namespace of its own, so that TLS clients can be redirected to the proxies.
The servers have one core to themselves, the load another: one cannot take the other's time.
"""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Promise, alternate, percentile
from benchmarks.gate import client
from benchmarks.http import memory
from benchmarks.load import BINARIES, HERE, SCRIPT, free_port, listens, needs, running
from benchmarks.plot import svg
from benchmarks.store import fill
from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.sqlite.store import SqliteStore

BLOCK_LIST, MITMDUMP = "mitmdump, block_list", "mitmdump, the portal"
RUN, ASYNCIO = "capport run, uvloop", "capport run, asyncio"
LARGE = "capport run, 100 000 rules and sessions"
SQUID, NGINX = "Squid, deny_info", "nginx, return 511"
OURS = (RUN, ASYNCIO, MITMDUMP, LARGE)
WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from capport.cli import main; sys.exit(main())"
)
EACH = "processor time for each"
URL = "http://www.example.com/page"
PAGE = b"<!doctype html><title>Sign in</title>".ljust(2000)
POLICY = "login_url: https://login.example.net/\n"
MANY = 100_000  # client rules, and sessions; a tenth as many names in the garden
SLOW_OF_ONE = 250  # connections of one slow client
SLOW_KIB = 32  # promised for each of them
CORE = min(os.sched_getaffinity(0))  # of the servers
RATE = 100  # requests a second of the polite client
SQUID_CONFIG = """
http_port 127.0.0.1:{port}
acl everybody src all
deny_info 511:ERR_SIGN_IN everybody
http_access deny everybody
error_directory {folder}
shutdown_lifetime 0 seconds
pid_filename none
netdb_filename none
pinger_enable off
access_log none
cache_log stdio:/dev/stderr
coredump_dir {folder}
visible_hostname cache.example
memory_cache_shared off
cache deny all
dns_nameservers 127.0.0.1
"""
NGINX_CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port}; default_type text/html; add_header Cache-Control no-store always;
    return 511 "{page}";
  }}
  {tls}
}}
"""


@dataclass
class Server:
    """A server: the port of its proxy, that for redirected TLS if it has one, and its process."""

    port: int
    tls_port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def processor_time(self) -> float:
        """Seconds that the process and its descendants have computed."""
        pids, ticks = [self.process.pid], 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB."""
        return memory(self.process.pid, "VmRSS")


@dataclass(frozen=True, slots=True)
class Cost:
    """What refusals cost: microseconds of the processor for each, and how many a second."""

    microseconds: float
    rate: float


class Servers:
    """Runs all servers during a `with` block."""

    def __enter__(self) -> "Servers":
        self.redirects = os.geteuid() == 0 and shutil.which("nft") is not None
        with ExitStack() as stack:
            leave_a_core()
            if self.redirects:
                own_network()
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.folder.chmod(0o755)  # Squid reads its page as the user `proxy`
            (self.folder / "policy.yaml").write_text(POLICY)
            (self.folder / "ERR_SIGN_IN").write_bytes(PAGE)
            self.of = {name: Server(free_port(), free_port()) for name in self._commands()}
            for name, argv in self._commands().items():
                server = self.of[name]
                log = self.folder / f"{server.port}.log"
                server.process = stack.enter_context(
                    running(on_a_core(argv(server)), log, ready=partial(listens, server.port))
                )
            if self.redirects:
                redirect({name: one.tls_port for name, one in self.of.items()})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def store_of(self, name: str) -> Path:
        """The session store of one of our servers."""
        return self.folder / f"{OURS.index(name)}.db"

    def _commands(self) -> Mapping[str, Callable[[Server], list[str]]]:
        run, mitmdump = [str(BINARIES / "capport"), "run"], [str(BINARIES / "mitmdump"), "--quiet"]
        return {
            RUN: partial(self._ours, RUN, run),
            MITMDUMP: partial(self._ours, MITMDUMP, [*mitmdump, "-s", str(SCRIPT)]),
            ASYNCIO: partial(self._ours, ASYNCIO, [sys.executable, "-c", WITHOUT_UVLOOP, "run"]),
            LARGE: partial(self._ours, LARGE, run),
            BLOCK_LIST: self._block_list,
            SQUID: self._squid,
            NGINX: self._nginx,
        }

    def _ours(self, name: str, argv: list[str], server: Server) -> list[str]:
        policy = self._large_policy() if name == LARGE else self.folder / "policy.yaml"
        settings = {
            "portal_policy": policy,
            "portal_sessions": self.store_of(name),
            "portal_events": self.folder / f"{server.port}.events",
        }
        return [*argv, *self._mitmproxy(server), *_set(settings)]

    def _large_policy(self) -> Path:
        """Also fills its session store."""
        macs = (client(MANY + number).mac for number in range(MANY))
        (self.folder / "staff.csv").write_text("".join(f"{mac}\n" for mac in macs))
        garden = "".join(f"  - n{number}.example.org\n" for number in range(MANY // 10))
        clients = "clients:\n  - {file: staff.csv, access: known}\n"
        policy = self.folder / "large.yaml"
        policy.write_text(f"{POLICY}sessions: {{most: 200000}}\n{clients}walled_garden:\n{garden}")
        fill(self.store_of(LARGE), MANY)
        return policy

    def _block_list(self, server: Server) -> list[str]:
        given = _set({"connection_strategy": "lazy", "block_list": "/~all/511"})
        return [str(BINARIES / "mitmdump"), "--quiet", *self._mitmproxy(server), *given]

    def _mitmproxy(self, server: Server) -> list[str]:
        modes = [f"regular@127.0.0.1:{server.port}"]
        if self.redirects:
            modes.append(f"transparent@127.0.0.1:{server.tls_port}")
        confdir = self.folder / f"conf-{server.port}"
        return [*(p for m in modes for p in ("--mode", m)), *_set({"confdir": confdir})]

    def _squid(self, server: Server) -> list[str]:
        config = self.folder / "squid.conf"
        config.write_text(SQUID_CONFIG.format(port=server.port, folder=self.folder))
        return ["squid", "-N", "-d", "0", "-n", f"capport{server.port}", "-f", str(config)]

    def _nginx(self, server: Server) -> list[str]:
        tls = f"server {{ listen 127.0.0.1:{server.tls_port} ssl; ssl_reject_handshake on; }}"
        config = NGINX_CONFIG.format(
            port=server.port, folder=self.folder, page=PAGE.decode().replace('"', ""), tls=tls
        )
        (self.folder / "nginx.conf").write_text(config)
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of refusals."""
    needs(wrk="wrk", squid="squid", nginx="nginx-light", taskset="util-linux")
    rounds, seconds = (1, 1.0) if quick else (5, 2.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Servers() as servers:
        for name, server in servers.of.items():
            check(name, server)
        for new, how in ((False, "on 8 kept connections"), (True, "a connection for each")):
            one = partial(load, servers, new=new, seconds=seconds)
            yield from costs(f"511s, {how}", alternate_costs(rounds, servers.of, one))
        if servers.redirects:
            yield from tls(servers, rounds, seconds)
        yield latency(servers, quick)
        yield from burdens(servers, rounds, quick)


def picture(measured: Sequence[Figure]) -> str:
    """What refusals cost in processor time, as an SVG."""
    rows: dict[str, dict[str, Sequence[float]]] = {}
    for figure in measured:
        if figure.name.endswith(EACH):
            rows.setdefault(figure.name, {}).update(figure.rows)
    ours = (*OURS, *map(of_511, OURS))
    return svg([Figure(name, "us", of) for name, of in rows.items()], ours)


def tls(servers: Servers, rounds: int, seconds: float) -> Iterator[Figure]:
    """A hello must cost no more than a 511 on a new connection that is redirected as it is."""
    what, ours = f"TLS hellos refused: {EACH}", (RUN, ASYNCIO, MITMDUMP)
    ways = {name: (name, 443) for name in (*ours, NGINX)} | {of_511(n): (n, 80) for n in ours}
    of = alternate_costs(rounds, ways, lambda way: redirected(servers, *ways[way], seconds))
    rows = {way: [cost.microseconds for cost in costs] for way, costs in of.items()}
    for name in ours:
        pair, promise = {way: rows[way] for way in (name, of_511(name))}, (Promise.AT_MOST, 1.0)
        yield Figure(what, "us", pair, of_511(name), promise, of_peer=True)
    yield Figure(what, "us", {NGINX: rows[NGINX]})


def of_511(name: str) -> str:
    """The row of a server's 511s among those of its TLS refusals."""
    return f"{name}, a 511"


def alternate_costs(
    rounds: int, names: Iterable[str], one: Callable[[str], Cost]
) -> dict[str, list[Cost]]:
    """The costs of each in `rounds` rounds."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}

    def measure(name: str) -> float:
        costs[name].append(one(name))
        return 0.0

    alternate(rounds, {name: partial(measure, name) for name in costs})
    return costs


def costs(what: str, of: Mapping[str, list[Cost]]) -> Iterator[Figure]:
    """Processor time, beside each peer, and requests a second."""
    time_of = {name: [cost.microseconds for cost in rows] for name, rows in of.items()}
    new = "a connection" in what
    bounds = {
        (RUN, NGINX, SQUID): 1.0,
        (ASYNCIO, SQUID): 1.3 if new else 1.0,
        (MITMDUMP, BLOCK_LIST): 1 / 8 if new else 1 / 15,
        (LARGE, RUN): 1.3,
    }
    for names, bound in bounds.items():
        rows = {name: time_of[name] for name in names}
        promise = (Promise.AT_MOST, bound)
        yield Figure(f"{what}: {EACH}", "us", rows, names[-1], promise, of_peer=True)
    rates = {name: [cost.rate for cost in rows] for name, rows in of.items()}
    yield Figure(what, "1/s", rates)


def check(name: str, server: Server) -> None:
    """Raises ValueError unless the answer is a whole 511 of the size that is meant."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"GET {URL} HTTP/1.1\r\nHost: www.example.com\r\n\r\n".encode())
        answer = b""
        while not (head := re.match(rb"(?s)(.*?)\r\n\r\n(.*)", answer)) or (
            len(head[2]) < _length(head[1])
        ):
            if not (data := client.recv(65536)):
                break
            answer += data
    if not head or b" 511 " not in answer[:20] or len(head[2]) != _length(head[1]):
        raise ValueError(f"{name}: not a 511 of its declared length: {answer[:200]!r}")
    if name != BLOCK_LIST and not 1500 < len(head[2]) < 4000:
        raise ValueError(f"{name}: a page of {len(head[2])} bytes, not some 2000")


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 1 << 60


def load(servers: Servers, name: str, *, new: bool, seconds: float) -> Cost:
    """What wrk's requests cost. Raises ValueError unless every answer was a whole 511."""
    server = servers.of[name]
    before = server.processor_time()
    done = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", "8"),
            *("--duration", f"{max(1, round(seconds))}s", "--script", str(HERE / "proxied.lua")),
            *(("--header", "Connection: close") if new else ()),
            f"http://127.0.0.1:{server.port}/",
        ],
        env={**os.environ, "BENCH_URL": URL},
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    )
    spent = server.processor_time() - before
    counted = re.search(r"counted (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if counted is None or rate is None:
        raise ValueError(f"wrk says nothing: {done.stdout}{done.stderr}")
    requests, size, refused, failed, cut = map(int, counted.groups())
    least = len(PAGE) * 0.8
    if name == BLOCK_LIST:  # it has no page, and closes without saying `Connection: close`
        least, cut = 50, 0
    failed += cut
    if not requests or refused != requests or failed or size < requests * least:
        raise ValueError(f"{name}: not {requests} whole 511s: {done.stdout}")
    return Cost(spent / requests * 1e6, float(rate[1]))


def redirected(servers: Servers, name: str, port: int, seconds: float) -> Cost:
    """What refusing hellos (port 443) or requests (80) on new, redirected connections costs."""
    server = servers.of[name]
    before = server.processor_time()
    count = int(_said("redirected.py", address_of(servers, name), port, seconds))
    return Cost((server.processor_time() - before) / count * 1e6, count / seconds)


def latency(servers: Servers, quick: bool) -> Figure:
    """How long a polite client waits, at a fixed rate."""
    rows: dict[str, list[float]] = {}
    for name in servers.of:
        if name != LARGE:
            waits = polite(servers.of[name], 2 if quick else 5)
            for of_100 in (50, 99):
                rows[f"{name}: {of_100} of 100"] = [percentile(waits, of_100)]
    return Figure(f"until a 511 is there, at {RATE} a second", "ms", rows)


def burdens(servers: Servers, rounds: int, quick: bool) -> Iterator[Figure]:
    """What many refusals, slow clients and one client at full speed do to the portal."""
    count, slow = (5_000, 500) if quick else (100_000, 5_000)
    server = servers.of[RUN]
    flood(servers, 2_000)
    before = server.memory()
    flood(servers, count)
    rows = {RUN: [server.memory() - before]}
    yield Figure(f"memory after {count} refusals", "MiB", rows, promise=(Promise.AT_MOST, 5.0))
    before = server.memory()
    with slow_clients(server, slow):
        held = server.memory() - before
    most = slow * SLOW_KIB / 1024
    yield Figure(
        f"memory for {slow} slow clients", "MiB", {RUN: [held]}, promise=(Promise.AT_MOST, most)
    )
    alone, beside, granted = list[float](), list[float](), list[float]()
    for number in range(rounds):
        alone.append(percentile(polite(server, 2), 99))
        with flooding(server), asking(server, 2) as waits:
            granted += grants(servers, number * 5, 5)
        beside.append(percentile(waits, 99))
    added = [with_it - without for with_it, without in zip(beside, alone, strict=True)]
    rows = {"added": added, "alone": alone, "beside one at full speed": beside}
    yield Figure(
        "99 of 100 answers to a polite client", "ms", rows, promise=(Promise.AT_MOST, 20.0)
    )
    yield Figure(
        "a grant during that, until it is in force",
        "ms",
        {RUN: granted},
        promise=(Promise.AT_MOST, 100.0),
        worst=True,
    )


def flood(servers: Servers, count: int) -> None:
    """Waits for at least `count` refusals, half of the time on new connections."""
    done, new = 0.0, False
    while done < count:
        done += load(servers, RUN, new=new, seconds=2).rate * 2
        new = not new


@contextmanager
def slow_clients(server: Server, count: int) -> Iterator[None]:
    """`count` connections that have sent half a head, of clients with 250 each."""
    with ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.socket())
            client.bind((f"127.0.{1 + number // SLOW_OF_ONE}.1", 0))
            client.settimeout(20)
            client.connect(("127.0.0.1", server.port))
            client.sendall(f"GET {URL} HTTP/1.1\r\nHost: www.exam".encode())
        time.sleep(0.5)
        yield


@contextmanager
def flooding(server: Server) -> Iterator[None]:
    """One client at full speed, a connection for each request."""
    argv = ["wrk", "--threads", "1", "--connections", "64", "--duration", "120s"]
    argv += ["--script", str(HERE / "proxied.lua"), "--header", "Connection: close"]
    with subprocess.Popen(
        [*argv, f"http://127.0.0.1:{server.port}/"],
        env={**os.environ, "BENCH_URL": URL},
        stdout=subprocess.DEVNULL,
    ) as wrk:
        time.sleep(1)
        try:
            yield
        finally:
            wrk.kill()


def polite(server: Server, seconds: float) -> list[float]:
    """Milliseconds that each request of a client at a fixed rate took."""
    with asking(server, seconds) as waits:
        pass
    return waits


@contextmanager
def asking(server: Server, seconds: float) -> Iterator[list[float]]:
    """A polite client beside the `with` block. The list has its milliseconds after the block."""
    waits: list[float] = []
    argv = _argv("polite.py", server.port, RATE, seconds)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
        try:
            yield waits
            said, _ = client.communicate(timeout=120)
        except BaseException:
            client.kill()
            raise
    waits += map(float, said.split())
    if not waits:
        raise ValueError("the polite client has failed")


def grants(servers: Servers, first: int, count: int) -> Iterator[float]:
    """Milliseconds from a grant by another process until the portal serves the client."""
    with closing(SqliteStore(servers.store_of(RUN), spares=())) as store:
        for number in range(first, first + count):
            address, now = f"127.0.200.{number + 1}", clock.now()
            store.put(Session(ClientId(address), now, now + 3600.0))
            begun = time.monotonic()
            while is_refused(address, servers.of[RUN].port):
                if time.monotonic() > begun + 20:
                    raise ValueError("a grant is not in force after 20 s")
                time.sleep(0.005)
            yield (time.monotonic() - begun) * 1000


def is_refused(address: str, port: int) -> bool:
    """Whether a client gets a 511."""
    with socket.socket() as client:
        client.bind((address, 0))
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n")
        return b" 511 " in client.recv(20)


def own_network() -> None:
    """Puts this process and its children into a network namespace of their own."""
    os.unshare(os.CLONE_NEWNET)
    for line in ("link set lo up", "route add 203.0.113.0/24 dev lo src 127.0.0.1"):
        subprocess.run(["ip", *line.split()], check=True)


def redirect(ports: Mapping[str, int]) -> None:
    """Redirects ports 80 and 443 of one address for each name to its port."""
    rules = "\n".join(
        f"ip daddr 203.0.113.{number} tcp dport {{ 80, 443 }} redirect to :{port}"
        for number, port in enumerate(ports.values(), 1)
    )
    table = f"table ip bench {{\nchain out {{\ntype nat hook output priority -100\n{rules}\n}}\n}}"
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)


def address_of(servers: Servers, name: str) -> str:
    """The address of which ports 80 and 443 are redirected to this server."""
    return f"203.0.113.{[*servers.of].index(name) + 1}"


def leave_a_core() -> None:
    """Keeps this process and its children off one core, which the servers get, if there are two."""
    others = os.sched_getaffinity(0) - {CORE}
    if others:
        os.sched_setaffinity(0, others)


def on_a_core(argv: list[str]) -> list[str]:
    """The command that runs `argv` on the core that was left."""
    return ["taskset", "--cpu-list", str(CORE), *argv]


def _said(script: str, *arguments: object) -> str:
    argv = _argv(script, *arguments)
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout


def _argv(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def _set(settings: Mapping[str, object]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
