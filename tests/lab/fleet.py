"""Several routers that share a Redis: each has an access point, and clients move between these.

    client1 --.        ap1 -- br-lan [router 1] --.
    client2 --+-- air {                            +-- eth0 [origin]
    client3 --'        ap2 -- br-lan [router 2] --'

Each router is the gateway on its access point, with the same address and MAC, as in mesh networks:
a client that moves keeps its address, its ARP cache and its connections. The way back to it follows
by a host route, as a routing protocol announces it. Redis is in a network of the routers' own.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Self

from lab import namespaces
from lab.namespaces import Namespace, end, wait_for
from lab.network import POLICY, Lab, Site, listening

REDIS, PORT = "203.0.113.1", 6379
FILE = "sqlite://{folder}/sessions.db"
SERVER = f"redis://{REDIS}:{PORT}/0"
SHARED = f"{SERVER}?file={{folder}}/sessions.db"
ROAM = """\
#!/bin/sh
# Moves the client in whose namespace it runs to the access point of router $1.
set -e
case $1 in [1-{routers}]) ;; *) echo "usage: roam 1..{routers}" >&2; exit 2 ;; esac
client=$(ip netns identify)
ip -n {air} link set "port${{client##*client}}" master "ap$1"
ip -o address show dev eth0 scope global | while read -r _ _ family address _; do
  case $family in inet) via=198.51.100.1$1 ;; *) via=2001:db8:2::1$1 ;; esac
  ip -n {origin} route replace "${{address%/*}}" via "$via"
done
"""


class Fleet:
    """Several labs with one origin, in a `with` block. The first lab has the clients.

    `policy` is as in `Lab`, but its sessions are in Redis, not in the lab's own file.
    """

    def __init__(
        self,
        routers: int = 2,
        *,
        clients: int = 1,
        policy: str = POLICY,
        names: Mapping[str, str] | None = None,
    ) -> None:
        assert FILE in policy
        self.routers: list[Lab] = []
        self._count, self._clients, self._names = routers, clients, names
        self._policy = policy.replace(FILE, SHARED)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        self._stack.callback(namespaces.let_go)
        air, origin, self.redis = map(self._namespace, ("air", "origin", "redis"))
        origin.ip("link add eth0 type bridge")
        self.redis.ip(
            "link add br0 type bridge", f"address add {REDIS}/24 dev br0", "link set br0 up"
        )
        self._kept = self._stack.enter_context(TemporaryDirectory())
        self.start_redis()
        self._stack.callback(self.stop_redis)
        for number in range(1, self._count + 1):
            lab = Lab(
                clients=self._clients if number == 1 else 0,
                policy=self._policy,
                names=self._names,
                name=f"lab{number}",
                workers=0,
                site=Site(number, air, origin, self.redis, self.routers[0] if number > 1 else None),
            )
            self.routers.append(self._stack.enter_context(lab))
        roam = self.routers[0].folder / "roam"
        roam.write_text(ROAM.format(routers=self._count, air=air.name, origin=origin.name))
        roam.chmod(0o755)

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self._stack.callback(made.delete)
        return made

    def start_redis(self) -> None:
        """Starts Redis with what SAVE has kept, if anything."""
        self._redis = self.redis.start(
            *("redis-server", "--bind", REDIS, "--port", str(PORT), "--save", ""),
            *("--protected-mode", "no", "--maxmemory-policy", "noeviction", "--dir", self._kept),
        )
        wait_for(lambda: self.redis.call(listening)[PORT], message="Redis does not listen")

    def stop_redis(self) -> None:
        """Ends Redis."""
        end(self._redis)
