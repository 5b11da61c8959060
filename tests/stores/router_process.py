"""A router's store in a process that takes commands, and that a test may kill or freeze.

It reads `put CLIENT`, `revoke CLIENT` and `find CLIENT`, one a line, and answers each with a line.
"""

import subprocess
import sys
from pathlib import Path

from capport import clock
from capport.core.client import ClientId
from capport.core.session import Session
from capport.stores.redis import redis_link
from capport.stores.redis.redis_store import RedisStore
from capport.stores.redis_url import parse_redis_url
from capport.stores.sqlite.store import SqliteStore

HERE = Path(__file__).resolve()


class RouterProcess:
    """The other end of its pipes. `lease`: in seconds, as short as a test can wait."""

    def __init__(self, url: object, folder: Path, *, lease: float = redis_link.LEASE) -> None:
        folder.mkdir(exist_ok=True)
        addon, tests = HERE.parents[2] / "addon", HERE.parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stores.router_process", str(url), str(folder), str(lease)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": f"{addon}:{tests}"},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, what: str, client: str) -> str:
        self.tell(what, client)
        return self.said()

    def tell(self, what: str, client: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{what} {client}\n")
        self.process.stdin.flush()

    def said(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def main(url: str, folder: str, lease: str) -> None:
    redis_link.LEASE = float(lease)
    path = Path(folder) / "sessions.db"
    store = RedisStore(parse_redis_url(url), path, SqliteStore(path, spares=()))
    print("ready", flush=True)
    for line in sys.stdin:
        what, word = line.split()
        client, now = ClientId(word), clock.now()
        if what == "put":
            store.put(Session(client, now, now + 3600))
            print("alone" if store.fault else "taken", flush=True)
        elif what == "revoke":
            store.revoke(client)
            print("alone" if store.fault else "taken", flush=True)
        else:
            print("known" if store.find((client,), now) else "unknown", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
