"""The kernel's part, in the lab: a client, a router and an origin in network namespaces.

A known client beside plain forwarding (the rules down and forwarding open; nothing is tracked in
either), on a router that translates addresses beside the same router without the portal (all is
tracked in either), and beside mitmproxy's relay. They alternate in one lab.
"""

import contextlib
import io
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Missing, Promise, alternate, percentile
from benchmarks.load import BINARIES, HERE, needs, wrk
from capport import cli
from capport.router import known_clients, nftables
from lab.namespaces import end, wait_for
from lab.network import ORIGIN4, Client, Lab, environment, missing

WEB, STREAM, RELAY_PORT, ECHO = 8090, 5201, 8081, 7
KNOWN = "a known client, the portal's rules"
PLAIN, RELAY = "plain forwarding", "mitmproxy's relay"
NATTED, BOTH = "masquerading", "masquerading, and the portal's rules"
FLOOD = 50_000  # SYNs a second
NGINX = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000;
  server {{ listen {port}; return 200 "{body}"; }} }}
"""
MASQUERADING = """
table inet masquerading {
chain onward { type filter hook forward priority filter; ct state established,related accept
}
chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade
}
}
"""
RELAYING = f"""
table inet relaying {{
chain to_proxy {{ type nat hook prerouting priority dstnat;
iifname "br-lan" tcp dport {{ {WEB}, {STREAM} }} redirect to :{RELAY_PORT}
}}
}}
"""


def figures(quick: bool) -> Iterator[Figure]:
    """Each figure of the router."""
    if (reason := missing()) is not None:
        raise Missing(f"{reason}; sudo scripts/bench router")
    needs(iperf3="iperf3", wrk="wrk", nginx="nginx-light")
    with Lab(clients=2, name="bench") as lab, servers(lab):
        grant(lab, lab.client)
        with relay(lab):
            yield from forwarding(lab, rounds=1 if quick else 10, seconds=1 if quick else 2)
        put_up(lab)
        yield from latencies(lab, 5 if quick else 120)
        yield from flooded(lab, 2 if quick else 15)


# --- a known client's traffic --------------------------------------------------------------------


def forwarding(lab: Lab, rounds: int, seconds: int) -> Iterator[Figure]:
    """Throughput and requests a second."""
    for name, unit, measure in (
        ("throughput, one connection (iperf3)", "Gbit/s", throughput),
        ("requests on 16 kept connections (wrk)", "1/s", kept),
        ("requests, a connection for each (wrk)", "1/s", new),
    ):
        for label, ours, peer in (
            ("beside forwarding", KNOWN, PLAIN),
            ("with address translation", BOTH, NATTED),
        ):
            ways = {way: partial(by, lab, way, measure, seconds) for way in (peer, ours)}
            rows = alternate(rounds, ways)
            rows = {way: rows[way] for way in (ours, peer)}
            promise = (Promise.AT_LEAST, 0.95)
            yield Figure(f"{name}, {label}", unit, rows, peer, promise, of_peer=True)
        some = max(1, rounds // 5)
        rows = alternate(
            some, {way: partial(by, lab, way, measure, seconds) for way in (KNOWN, RELAY)}
        )
        yield Figure(f"{name}, beside the relay", unit, rows, RELAY)


def by(lab: Lab, way: str, measure: Callable[[Lab, int], float], seconds: int) -> float:
    """One measurement, with the router set to forward in that way."""
    extra = {NATTED: MASQUERADING, BOTH: MASQUERADING, RELAY: RELAYING}.get(way)
    lab.router.call(known_clients.down)
    if extra:
        lab.rules.run(extra)
    try:
        if way in (KNOWN, BOTH):
            put_up(lab)  # after the others' table: it has known clients tracked
        return measure(lab, seconds)
    finally:
        if extra:
            lab.rules.run(f"delete {' '.join(extra.split()[:3])}\n")


def throughput(lab: Lab, seconds: int) -> float:
    """Gbit/s that arrive."""
    argv = ("iperf3", "--client", ORIGIN4, "--time", str(seconds), "--json")
    done = lab.client.run(*argv, timeout=seconds + 20)
    said = json.loads(done.stdout)
    if "error" in said:
        raise ValueError(f"iperf3: {said['error']}")
    bits: float = said["end"]["sum_received"]["bits_per_second"]
    return bits / 1e9


def kept(lab: Lab, seconds: int) -> float:
    """Requests a second on connections that are kept."""
    return requests(lab, seconds, new=False)


def new(lab: Lab, seconds: int) -> float:
    """Requests a second, each on a connection of its own."""
    return requests(lab, seconds, new=True)


def requests(lab: Lab, seconds: int, *, new: bool) -> float:
    """Requests a second. Raises ValueError unless the origin answers all of them."""
    url = f"http://{ORIGIN4}:{WEB}/"
    got = wrk(url, seconds=seconds, connections=16, new=new, within=lab.client.namespace.argv)
    if got.refused:
        raise ValueError(f"of {got.requests} answers {got.refused} are not the origin's")
    return got.rate


@contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """nginx and iperf3 at the origin."""
    config = lab.folder / "nginx.conf"
    config.write_text(NGINX.format(folder=lab.folder, port=WEB, body="x" * 1000))
    with ExitStack() as stack:
        for argv in (("nginx", "-c", str(config)), ("iperf3", "--server")):
            stack.callback(end, lab.origin.start(*argv))
        for port in (WEB, STREAM):
            wait_for(partial(open_at, lab, port), 10, f"nothing listens on the origin's {port}")
        yield


def open_at(lab: Lab, port: int) -> bool:
    """Whether the origin takes connections on `port`."""
    with suppress(OSError):
        lab.origin.call(socket.create_connection, (ORIGIN4, port), 1).close()
        return True
    return False


@contextmanager
def relay(lab: Lab) -> Iterator[None]:
    """A mitmdump with no addon, in transparent mode."""
    process = lab.router.start(
        *(str(BINARIES / "mitmdump"), "--mode", f"transparent@{RELAY_PORT}", "--quiet"),
        *("--set", "block_global=false", "--set", "stream_large_bodies=1m"),
        *("--set", f"confdir={lab.folder / 'relay'}"),
        env=environment(),
    )
    try:

        def listening() -> bool:
            lines = lab.router.call(Path("/proc/thread-self/net/tcp").read_text).splitlines()
            return any(f":{RELAY_PORT:04X} 00000000:0000 0A" in line for line in lines)

        wait_for(listening, 30, "mitmproxy's relay does not listen")
        yield
    finally:
        end(process)


# --- grants and revocations ----------------------------------------------------------------------


class Stream:
    """A datagram each millisecond from a client to the origin's echo, and what came back."""

    def __init__(self, client: Client) -> None:
        self._socket = client.namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.last = 0.0
        """When the last datagram that came back was sent."""
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def first_after(self, moment: float) -> float:
        """When the first datagram that came back was sent, of those sent after `moment`."""
        wait_for(lambda: self.last > moment, 5, "nothing comes back")
        return min(at for at in tuple(self._back) if at > moment)

    def last_of_all(self) -> float:
        """When the last one that came back was sent, once none has come back for a while."""
        while time.monotonic() < self.last + 0.3:
            time.sleep(0.05)
        return self.last

    def _send(self) -> None:
        while not self._closed.wait(0.001):
            with suppress(OSError):
                self._socket.sendto(repr(time.monotonic()).encode(), (ORIGIN4, ECHO))

    def _receive(self) -> None:
        self._back: list[float] = []
        while not self._closed.is_set():
            if select.select([self._socket], [], [], 0.1)[0]:
                with suppress(OSError):
                    sent = float(self._socket.recv(100))
                    self._back = [*self._back[-100:], sent]
                    self.last = max(self.last, sent)

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()


def latencies(lab: Lab, count: int) -> Iterator[Figure]:
    """From a command to the first packet that goes, or no longer goes."""
    stream = Stream(lab.client)
    try:
        for label, carry_out, times in (
            ("its work", lab_command, count),
            ("with the start of its Python", process, max(2, count // 8)),
        ):
            granted, revoked = [], []
            for _ in range(times):
                revoked.append(revocation(lab, stream, carry_out))
                granted.append(a_grant(lab, stream, carry_out))
            promise = (Promise.AT_MOST, 100.0) if carry_out is lab_command else None
            for name, took in (("grant", granted), ("revoke", revoked)):
                rows = {"99 of 100": [percentile(took, 99)], "each": took}
                yield Figure(
                    f"capport {name}, {label}, to the first packet that shows it",
                    "ms",
                    rows,
                    promise=promise,
                )
    finally:
        stream.close()


def a_grant(lab: Lab, stream: Stream, carry_out: Callable[[Lab, str], None]) -> float:
    """Milliseconds until a datagram is sent that gets through."""
    before = time.monotonic()
    carry_out(lab, "grant")
    return (stream.first_after(before) - before) * 1e3


def revocation(lab: Lab, stream: Stream, carry_out: Callable[[Lab, str], None]) -> float:
    """Milliseconds until the last datagram is sent that gets through."""
    before = time.monotonic()
    carry_out(lab, "revoke")
    done = time.monotonic()
    time.sleep(0.15)  # nothing that is sent from here on may come back
    if stream.last > done + 0.1:
        raise ValueError("datagrams still get through 0.1 s after capport revoke returned")
    return max(0.0, stream.last - before) * 1e3


def process(lab: Lab, name: str) -> None:
    """The command as a user runs it."""
    done = lab.capport(name, lab.client.mac, "--policy", str(lab.policy_file))
    if done.returncode:
        raise ValueError(f"capport {name}: {done.stderr}")


def lab_command(lab: Lab, name: str) -> None:
    """The command in this process, on a thread in the router's namespace."""

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            status = cli.main([name, lab.client.mac, "--policy", str(lab.policy_file)])
        if status:
            raise ValueError(f"capport {name} ends with {status}")

    lab.router.call(run)


# --- a flood from an unknown client --------------------------------------------------------------


def flooded(lab: Lab, seconds: int) -> Iterator[Figure]:
    """What a known client's requests take while an unknown one floods, and while it does not."""
    quiet, made = "no flood", "a flood that leaves its sender nowhere"
    flood, unbounded = "a flood, held by the portal's rules", "a flood, without their bound"
    other = lab.clients[1]
    # A cable back to itself: what arrives there is for another MAC, and dropped.
    other.namespace.ip("link add nowhere type veth peer name void")
    other.namespace.ip("link set void up", "link set nowhere up")
    waits: dict[str, list[float]] = {name: [] for name in (flood, unbounded, made, quiet)}
    arrived: dict[str, list[float]] = {flood: [], unbounded: []}
    tracked: dict[str, list[float]] = {flood: [], unbounded: []}

    def measure(name: str) -> float:
        put_up(lab)
        if name == unbounded:
            lab.rules.run(f"flush chain {nftables.TABLE} bounded")
        with ExitStack() as stack:
            if name != quiet:
                stack.callback(end, start_flood(lab, other, "nowhere" if name == made else "eth0"))
                time.sleep(1)
            before, begun = received(lab), time.monotonic()
            waits[name] += lab.client.namespace.call(visits, seconds / 3)
            if name in arrived:
                arrived[name].append((received(lab) - before) / (time.monotonic() - begun))
                tracked[name].append(connections(lab))
        return waits[name][-1]

    try:
        alternate(3, {name: partial(measure, name) for name in waits})
    finally:
        put_up(lab)
    yield Figure("SYNs that reach the router", "1/s", arrived)
    yield Figure("entries in conntrack afterwards", "entries", tracked)
    yield Figure("a known client's request meanwhile", "ms", waits)
    late = {name: percentile(values, 99) for name, values in waits.items()}
    added = {name: [late[name] - late[quiet]] for name in (flood, unbounded, made)}
    yield Figure("what that adds for 99 of 100", "ms", added, promise=(Promise.AT_MOST, 20.0))


def connections(lab: Lab) -> int:
    """Entries in the router's conntrack."""
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(lab.router.call(count.read_text))


def received(lab: Lab) -> int:
    """Packets that the router has had from the second client."""
    counter = "/sys/class/net/port2/statistics/rx_packets"
    return int(lab.router.run("cat", counter).stdout)


def start_flood(lab: Lab, client: Client, interface: str) -> subprocess.Popen[bytes]:
    """The flood, in `client`."""
    shown = lab.router.run("cat", "/sys/class/net/br-lan/address").stdout.strip()
    return client.namespace.start(
        *(sys.executable, str(HERE / "flood.py"), interface, shown, client.v4, ORIGIN4, str(FLOOD))
    )


def visits(seconds: float) -> list[float]:
    """Milliseconds of each request on a connection of its own, a hundred a second."""
    took = []
    until = time.monotonic() + seconds
    while (begun := time.monotonic()) < until:
        with socket.create_connection((ORIGIN4, WEB), 5) as asking:
            asking.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = asking.recv(100)
        if b" 200 " not in answer:
            raise ValueError(f"the origin answered {answer[:60]!r}")
        took.append((time.monotonic() - begun) * 1e3)
        time.sleep(max(0.0, begun + 0.01 - time.monotonic()))
    return took


def grant(lab: Lab, client: Client) -> None:
    """Makes `client` known for the rest of the run."""
    done = lab.capport("grant", client.mac, "--policy", str(lab.policy_file))
    if done.returncode:
        raise ValueError(f"capport grant: {done.stderr}")


def put_up(lab: Lab) -> None:
    """The portal's rules, with all known clients."""
    done = lab.capport("router", "up", str(lab.policy_file))
    if done.returncode:
        raise ValueError(f"capport router up: {done.stderr}")
