"""The lab: clients, a router with the portal, and an origin, each in a network namespace.

    client1 --.
    client2 --+-- br-lan [router: dnsmasq twice, mitmdump, nftables] wan -- eth0 [origin]

IPv4 and IPv6, a real bridge and neighbour table, DHCP and router advertisements with the portal's
URL, DNS that the router resolves at the origin. Addresses are those of the documentation (RFC
5737, RFC 3849). Everything is gone when it is closed; what a killed lab left, the next one clears.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from capport.core.captivity import PATH
from capport.core.client import Address, Mac, parse_address, parse_mac
from capport.core.policy import Policy
from capport.linux.libnftables import Nftables
from capport.linux.neighbours import NetlinkNeighbours
from capport.policy import policy_file
from capport.router import known_clients, membership, nftables
from capport.router.fence import Fence
from capport.stores.opening import open_store
from capport.testing.kinds import OURS, kind_named
from commandline import capport
from confdir import confdir
from lab import kinds, namespaces, origin
from lab.advertise import Advertiser
from lab.dhcp import Lease, lease
from lab.namespaces import Namespace, end, veth, wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = CHECKOUT / "scripts" / "router"
TOOLS = ("ip", "nft", "dnsmasq")

ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8:1::1"
ORIGIN4, STATUS4 = origin.ADDRESSES[4]
ORIGIN6, _ = origin.ADDRESSES[6]
CLIENT_SIDE, ORIGIN_SIDE = "br-lan", "wan"
PROXY_PORT = 8080
TUNNEL, TUNNEL_PORT = "tunnel.example.net", 5300
"""A domain with a name server on the origin that belongs to somebody who tunnels through DNS."""
CAPTIVE_PORTAL = f"https://login.example.net{PATH}"

POLICY = """\
network: Lab
login_server:
  listen: 192.0.2.1:8511
walled_garden:
  - www.example.org
  - status.example.org:8081
sessions:
  store: sqlite://{folder}/sessions.db
router:
  client_interface: br-lan
  origin_interface: wan
"""


LOOKED_UP = "\6status\7example\3org"
"""The garden's name that the router itself asks for, in a question (RFC 1035 section 3.1)."""

WITH_TLS = POLICY.replace(
    "login_server:\n  listen: 192.0.2.1:8511\n",
    """\
login_url: https://login.example.net/
login_server:
  listen: 192.0.2.1:443
  certificate: {folder}/cert.pem
  key: {folder}/key.pem
""",
)
"""The same, with the login server and its API where DHCP says; `names` must name that place."""
LOGIN_NAMES = {"login.example.net": ROUTER4}


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one of several routers whose LANs are one network (`fleet.py`)."""

    number: int
    air: Namespace
    origin: Namespace
    redis: Namespace
    first: "Lab | None"

    @property
    def access_point(self) -> str:
        """The router's own bridge in `air`."""
        return f"ap{self.number}"

    def wire(self, router: Namespace) -> None:
        """Lays the router's cables: to its access point, to the origin and to Redis."""
        number = self.number
        for place, port, bridge, interface in (
            (self.air, f"uplink{number}", self.access_point, "uplink"),
            (self.origin, f"wan{number}", "eth0", "wan"),
            (self.redis, f"router{number}", "br0", "inside"),
        ):
            if place is self.air:
                place.ip(f"link add {bridge} type bridge mcast_snooping 0", f"link set {bridge} up")
            veth(place, port, router, interface)
            place.ip(f"link set {port} master {bridge} up")
        router.ip(
            "link set uplink master br-lan up",
            "link set br-lan address 02:00:00:00:01:00",
            f"address add 203.0.113.1{number}/24 dev inside",
            "link set inside up",
        )


class Client:
    """A client in its namespace, with what DHCP and autoconfiguration gave it."""

    def __init__(self, number: int, lab: "Lab") -> None:
        self.namespace = Namespace(f"{lab.name}client{number}")
        self.mac: Mac = parse_mac(f"02:00:00:00:00:{number:02x}")
        self._port = f"port{number}"
        self._lab = lab
        self.lease: Lease | None = None
        where, bridge = (
            (lab.site.air, lab.site.access_point) if lab.site else (lab.router, CLIENT_SIDE)
        )
        veth(self.namespace, "eth0", where, self._port)
        self.namespace.ip(f"link set eth0 address {self.mac}")
        self.namespace.sysctl(
            ipv6__conf__eth0__accept_dad=0,
            ipv6__conf__eth0__router_solicitation_delay=0,
            ipv6__conf__eth0__accept_ra=2,
        )
        where.ip(f"link set {self._port} master {bridge} up")
        self.namespace.ip("link set eth0 up")

    @property
    def v4(self) -> str:
        """Its address by DHCP."""
        assert self.lease is not None
        return self.lease.address

    @property
    def v6(self) -> str:
        """Its address by autoconfiguration: EUI-64 (RFC 4291 appendix A)."""
        number = int(self.mac[-2:], 16)
        return str(parse_address(f"2001:db8:1::ff:fe00:{number:x}"))

    def connect(self) -> None:
        """Gets a lease and waits for an IPv6 address."""
        given = self.namespace.call(lease, "eth0", self.mac)
        self.namespace.ip(
            f"address replace {given.address}/{given.prefix} dev eth0",
            f"route replace default via {given.router}",
        )
        self.lease = given
        folder = Path("/etc/netns") / self.namespace.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(f"nameserver {given.dns}\n")
        wait_for(self.has_v6, message=f"{self.namespace.name} got no IPv6 address")

    def run(self, *argv: str, timeout: float = 100) -> CompletedProcess[str]:
        """Runs `argv` in the client."""
        return self.namespace.run(*argv, timeout=timeout, env=environment())

    def shell(self, command: str) -> int:
        """Runs a shell command in the client, on this terminal; its status."""
        argv = self.namespace.argv("/bin/sh", "-c", command)
        return subprocess.run(argv, env=self.environment, check=False).returncode

    @property
    def environment(self) -> dict[str, str]:
        """For people: makes curl trust the lab's certificates, and finds `roam`."""
        path = f"{self._lab.folder}:{os.environ['PATH']}"
        return {**environment(), "CURL_CA_BUNDLE": str(self._lab.trusted), "PATH": path}

    def curl(self, *arguments: str, seconds: float = 60) -> CompletedProcess[str]:
        """Curl with a time limit; what it prints is the status and the body."""
        return self.run(
            *("curl", "--silent", "--show-error", "--max-time", str(seconds)),
            *("--write-out", "\n%{http_code}", *arguments),
            timeout=seconds + 30,
        )

    def status(self, url: str, *arguments: str) -> int:
        """The status of a GET, 0 if there is no answer."""
        return int(self.curl(*arguments, url).stdout.rpartition("\n")[2] or 0)

    def take(self, mac: str) -> None:
        """Becomes another device: its MAC changes, its addresses stay."""
        self.namespace.ip(
            "link set eth0 down",
            f"link set eth0 address {mac}",
            "link set eth0 up",
            *([f"route replace default via {ROUTER4}"] if self.lease else []),
        )
        self.mac = parse_mac(mac)

    def roam(self, number: int) -> None:
        """Moves to the access point of that router, with its addresses."""
        done = self.run(str(self._lab.folder / "roam"), str(number))
        if done.returncode:
            raise OSError(f"roam {number}: {done.stderr}")

    def has_v6(self) -> bool:
        """Whether it has configured its IPv6 address and a way out by itself."""
        return self.namespace.call(_is_configured, self.v6)


class Lab:
    """The whole lab during a `with` block. Raises OSError that names what would not start.

    `policy` is the text of a policy, in which `{folder}` is the lab's own folder, or a file that is
    used where it lies, so that what it includes is found and errors name it. Without `portal`
    there is no mitmdump, which keeps the kernel's set of known clients; with `follow` the lab
    keeps it, too. With `workers` (0: in one process), `capport run` has mitmdump's place. `names`
    are at the addresses given, a blank between them; every other name is the origin's. With `site`,
    it is one of several routers. `kind` is the kind of portal.
    """

    def __init__(
        self,
        *,
        clients: int = 1,
        policy: str | Path = POLICY,
        portal: bool = True,
        follow: bool = False,
        proxy_ports: Sequence[int] = (PROXY_PORT,),
        names: Mapping[str, str] | None = None,
        name: str = "",
        workers: int | None = None,
        site: Site | None = None,
        kind: str = OURS,
    ) -> None:
        self.kind = kind_named(kind)
        self.site = site
        self._first = site.first if site else None
        self.name = f"{name}-" if name else ""
        self.clients: list[Client] = []
        self.proxies: list[Popen[bytes]] = []
        self.proxy_ports = tuple(proxy_ports)
        self._count, self._given = clients, policy
        self._portal, self._follow = portal, follow
        self._names = names or {}
        self._workers = workers
        self._stack = ExitStack()
        self._flushed = 0
        self.policy: Policy

    def __enter__(self) -> Self:
        try:
            self._build()
        except TimeoutError as error:
            said = {path.stem: path.read_text()[-2000:] for path in self.folder.glob("*.log")}
            self.close()
            raise OSError(f"{error}\n{json.dumps(said, indent=2)}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process and deletes every namespace and file."""
        self._stack.close()

    @property
    def client(self) -> Client:
        """The first client."""
        return self.clients[0]

    @property
    def trusted(self) -> Path:
        """The certificates that people's curl trusts here."""
        return self.folder / "trusted.pem"

    def capport(self, *arguments: str) -> CompletedProcess[str]:
        """Runs the `capport` command on the router, in this process."""
        return self.router.call(capport, *arguments)

    def start_proxy(self, port: int) -> Popen[bytes]:
        """Starts a mitmdump with the portal in transparent mode on `port`, and waits for it."""
        process = self._mitmdump(port)
        self._await_proxy(process, port)
        return process

    def packets(self) -> list[dict[str, Any]]:
        """Every packet that has reached the origin so far, the router's own among them.

        Left out is its question every minute: the garden's name on other ports than 80 and 443.
        """
        self._flushed += 1
        mark = f"flush {self._flushed}"
        sent = [0.0]
        found: list[dict[str, Any]] = []

        def arrived() -> bool:
            if time.monotonic() > sent[0] + 5:  # it may be lost, as any datagram
                # Whatever was sent before this is written down before this.
                self.router.call(_send, ORIGIN4, mark)
                sent[0] = time.monotonic()
            lines = (self.folder / "packets.jsonl").read_text().splitlines()
            found[:] = [json.loads(line) for line in lines if line.endswith("}")]
            return any(packet["payload"] == mark for packet in found)

        wait_for(arrived, message="the origin writes nothing down any more")
        return [
            packet
            for packet in found
            if not packet["payload"].startswith("flush ") and LOOKED_UP not in packet["payload"]
        ]

    def reached(self) -> list[str]:
        """Each packet that came to the origin from a client's side of the router, in one line."""
        return [
            f"{p['protocol']} {p['from']} -> {p['to']} {p['to_port']}"
            for p in self.packets()
            if p["from"].startswith(("192.0.2.", "2001:db8:1:"))
        ]

    def log(self) -> str:
        """The log of the proxies."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("mitmdump-*.log")))

    # Bringing it up.

    def _build(self) -> None:
        self._stack.callback(namespaces.let_go)
        self.folder = namespaces.state_folder() / (self.name or "lab")
        self.folder.mkdir()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.router = Namespace(f"{self.name}router")
        self._stack.callback(self.router.delete)
        if self.site is None:
            self.origin = Namespace(f"{self.name}origin")
            self._stack.callback(self.origin.delete)
        else:
            self.origin = self.site.origin
        self._wire()
        if self._first is None:
            _certificate(self.folder)
        else:
            for name in ("cert.pem", "key.pem"):
                shutil.copy(self._first.folder / name, self.folder)
        if isinstance(self._given, Path):
            self.policy_file = self._given
        else:
            self.policy_file = self.folder / "policy.yaml"
            text = self._given.replace("{folder}", str(self.folder))
            self.policy_file.write_text(text + kinds.in_policy(self.kind))
        self.policy = policy_file.load(self.policy_file)
        self._check_interfaces()
        self._trust()
        if self._portal:
            for port in self.proxy_ports:
                self._mitmdump(port)
        if self._first is None:
            self._start_origin()
        self._start_rules()
        self._start_dnsmasq()
        advertiser = self.router.call(Advertiser, "br-lan", "2001:db8:1::", ROUTER6, CAPTIVE_PORTAL)
        self._stack.callback(advertiser.close)
        for number in range(1, self._count + 1):
            client = Client(number, self)
            self._stack.callback(client.namespace.delete)
            self.clients.append(client)
        for client in self.clients:
            client.connect()
        if self._first is None:
            wait_for((self.folder / "ready").exists, message="the origin did not come up")
        for process, port in zip(self.proxies, self.proxy_ports, strict=False):
            self._await_proxy(process, port)

    def _check_interfaces(self) -> None:
        """Rules for other interfaces than the lab's would let every client through."""
        router = self.policy.router
        found = router and (router.client_interface, router.origin_interface)
        if found and found != (CLIENT_SIDE, ORIGIN_SIDE):
            raise ValueError(
                f"{self.policy_file} has {found[0]} and {found[1]} as the router's interfaces; in"
                f" the lab client_interface is {CLIENT_SIDE}, and origin_interface {ORIGIN_SIDE}"
            )

    def _trust(self) -> None:
        """The origin's certificate, and the login server's if the policy names one."""
        server = self.policy.login_server
        shown = (self.folder / "cert.pem").read_bytes()
        if server is not None and server.certificate is not None:
            shown += b"\n" + Path(server.certificate).read_bytes()
        self.trusted.write_bytes(shown)

    def _wire(self) -> None:
        last = f"1{self.site.number}" if self.site else "1"
        self.router.ip("link add br-lan type bridge mcast_snooping 0")
        if self.site is not None:
            self.site.wire(self.router)
        else:
            veth(self.origin, "eth0", self.router, "wan")
        self.router.sysctl(
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__default__send_redirects=0,
            ipv6__conf__default__accept_ra=0,
            ipv6__conf__wan__accept_ra=0,
            # By default, six refusals of UDP and one more a second: what a test sees would
            # depend on how many there were in earlier tests.
            ipv4__icmp_ratelimit=0,
            ipv6__icmp__ratelimit=0,
            # Without duplicate address detection: it delays the first advertisement, and the first
            # question for the origin, by a second or two.
            **{f"ipv6__conf__{interface}__accept_dad": 0 for interface in ("br-lan", "wan")},
        )
        self.router.ip(
            f"address add {ROUTER4}/24 dev br-lan",
            f"address add {ROUTER6}/64 dev br-lan nodad",
            f"address add 198.51.100.{last}/24 dev wan",
            f"address add 2001:db8:2::{last}/64 dev wan nodad",
            "link set br-lan up",
            "link set wan up",
        )
        if self._first is None:
            self.origin.sysctl(ipv6__conf__eth0__accept_dad=0)
            self.origin.ip(
                *(f"address add {address}/24 dev eth0" for address in origin.ADDRESSES[4]),
                *(f"address add {address}/64 dev eth0 nodad" for address in origin.ADDRESSES[6]),
                "link set eth0 up",
                f"route add default via 198.51.100.{last}",
                f"route add default via 2001:db8:2::{last}",
            )
        resolver = Path("/etc/netns") / self.router.name
        resolver.mkdir(parents=True, exist_ok=True)
        (resolver / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def _start_origin(self) -> None:
        script = str(Path(origin.__file__))
        self._start(self.origin, "origin", sys.executable, script, str(self.folder))

    def _start_rules(self) -> None:
        """The rules first, then forwarding: at no moment can an unknown client pass."""
        self.rules = self.router.call(Nftables)
        self.neighbours = self.router.call(NetlinkNeighbours, ["br-lan"])
        self._stack.callback(self.neighbours.close)
        nftables.up(self.policy, proxy_ports=self.proxy_ports, rules=self.rules)
        self.rules.run(kinds.in_rules(self.kind))
        self._stack.callback(self.rules.close)
        with closing(self.router.call(Fence)) as fence:
            fence.put(CLIENT_SIDE)
        self.router.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        if self._follow:
            store = open_store(self.policy.sessions.store or ":memory:")
            self.known = self.router.call(
                known_clients.KnownClients, lambda: self.policy, store, self.neighbours
            )
            store.watch(self.known.changed)
            self.router.call(self.known.start)
            self._stack.callback(store.close)
            self._stack.callback(self.known.close)

    def elements(self, name: str) -> dict[str, float]:
        """The elements of a set on the router, and the seconds that each has left."""
        return {one.text: one.left for one in membership.elements(self.rules, name)}

    def _start_dnsmasq(self) -> None:
        """With the snippet that is shipped, except for what differs in the lab.

        It advertises and names the login server by itself, and its origin's addresses are not ones
        that a public name has.
        """
        shipped = (SHIPPED / "capport.dnsmasq.conf").read_text().splitlines()
        others = ("enable-ra", "dhcp-range=2001:", "dhcp-option=option6:", "local=", "stop-dns-")
        config = self.folder / "dnsmasq.conf"
        config.write_text(
            "\n".join(
                [
                    "keep-in-foreground\nuser=root\nno-hosts\nno-resolv\nno-ping\npid-file=",
                    f"interface=lo\ndhcp-leasefile={self.folder}/leases",
                    f"server={ORIGIN4}",
                    f"server=/{TUNNEL}/{ORIGIN4}#{TUNNEL_PORT}",
                    *(f"local=/{name}/" for name in self._names),
                    *(
                        f"address=/{n}/{a}"
                        for n, every in self._names.items()
                        for a in every.split()
                    ),
                    *(line for line in shipped if not line.startswith(others)),
                    "",
                ]
            )
        )
        self._start(self.router, "dnsmasq", "dnsmasq", f"--conf-file={config}")
        self.resolver = self.start_resolver()

    def start_resolver(self) -> Popen[bytes]:
        """Starts the resolver for unknown clients, and the one for the garden's stars if needed."""
        shipped = (SHIPPED / "resolver-unknown.conf").read_text()
        files = {
            "stars": nftables.stars(self.policy),
            "unknown": shipped
            + nftables.to_stars(self.policy)
            + kinds.in_resolver(self.kind, ROUTER4),
        }
        for name, text in files.items():
            if text:
                config = self.folder / f"resolver-{name}.conf"
                config.write_text(f"keep-in-foreground\nuser=root\npid-file=\n{text}")
                started = self._start(self.router, name, "dnsmasq", f"--conf-file={config}")
        return started

    def _mitmdump(self, port: int) -> Popen[bytes]:
        settings: dict[str, object] = {
            "portal_policy": self.policy_file,
            "portal_events": self.folder / "events.jsonl",
            "confdir": confdir(),
        }
        command = ["mitmdump", "-s", str(CHECKOUT / "addon" / "captive_portal.py"), "--showhost"]
        if self.kind.answer:
            settings[kinds.OPTION] = self.kind.name
            command += "-s", kinds.__file__
        if self._workers is not None:
            workers = ("--workers", str(self._workers)) if self._workers else ()
            command = ["capport", "run", *workers]
        process = self._start(
            self.router,
            f"mitmdump-{port}",
            str(Path(sys.executable).with_name(command[0])),
            *(*command[1:], "--mode", f"transparent@{port}"),
            *(f"--set={name}={value}" for name, value in settings.items()),
        )
        self.proxies.append(process)
        return process

    def _await_proxy(self, process: Popen[bytes], port: int) -> None:
        """Waits until it, and its login server a little later, listen in IPv4 and IPv6."""
        server = self.policy.login_server
        wanted = Counter({port: 2})
        wanted.update(place.port for place in (server.listen if server else ()))

        def listens() -> bool:
            if process.poll() is not None:
                raise OSError(f"mitmdump ended with {process.returncode}:\n{self.log()}")
            found = self.router.call(listening)
            return all(found[port] >= count for port, count in wanted.items())

        wait_for(listens, message=f"mitmdump does not listen on each of {[*wanted]}")

    def _start(self, where: Namespace, name: str, *argv: str) -> Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            # The router trusts the login server's certificate, as people's devices do.
            env = {**environment(), "SSL_CERT_FILE": str(self.trusted)}
            process = where.start(*argv, log=log, env=env)
        self._stack.callback(end, process)
        return process


def environment() -> Mapping[str, str]:
    """The environment without proxy variables, because the lab has its own proxy."""
    return {name: v for name, v in os.environ.items() if not name.lower().endswith("_proxy")}


def missing(*more: str) -> str | None:
    """Why there can be no lab here (`tools` are needed too), or None."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    lacking = [tool for tool in (*TOOLS, *more) if shutil.which(tool) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


def _send(address: str, text: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), (address, 9))


def listening() -> Counter[int]:
    """The TCP ports that are listened on, and by how many sockets, from /proc: see `nftables`."""
    tables = (Path(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6"))
    fields = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return Counter(int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == "0A")


def _is_configured(address: str) -> bool:
    """Whether an IPv6 address and a default route are here, by /proc: no process is started."""
    net = Path("/proc/thread-self/net")
    routes = (net / "ipv6_route").read_text().splitlines()
    default = any(line.startswith(f"{0:032x} 00 ") and not line.endswith(" lo") for line in routes)
    return default and parse_address(address).packed.hex() in (net / "if_inet6").read_text()


def _certificate(folder: Path) -> None:
    """cert.pem and key.pem for every name under example.org, example.com and the origin."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin.example")])
    names: list[x509.GeneralName] = [
        x509.DNSName(n)
        for n in ("origin.example", "*.example.org", "*.example.com", "*.example.net")
    ]
    addresses: list[Address] = [parse_address(a) for v in (4, 6) for a in origin.ADDRESSES[v]]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([*names, *map(x509.IPAddress, addresses)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
