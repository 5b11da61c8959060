"""The lab as a guest's journey needs it: HTTPS at the login server, and a site at the origin."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import requires
from capport.stores.opening import open_store
from journey import website
from journey.systems import Answer
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ROUTER4, Client, Lab
from login.certificates import certificate

LOGIN = "login.example.net"
POLICY = """\
network: Example Café
login_url: https://login.example.net/?state={{state}}
refresh: 600
login_server:
  listen: 192.0.2.1:443
  certificate: {certificate}
  key: {key}
sessions:
  store: sqlite://{{folder}}/sessions.db
router:
  client_interface: br-lan
  origin_interface: wan
"""

REDIRECT = f"""\
table inet website {{
    chain incoming {{
        type nat hook prerouting priority dstnat
        tcp dport 80 redirect to :{website.HTTP}
        tcp dport 443 redirect to :{website.HTTPS}
    }}
}}
"""


@dataclass
class Street:
    """The lab, with methods for tests of the whole way."""

    lab: Lab
    certificate: Path
    """The login server's; clients that trust it take it for their CA."""

    @property
    def client(self) -> Client:
        return self.lab.client

    def is_known(self, client: Client | None = None) -> bool:
        done = self.lab.capport("clients", "--json", "--policy", str(self.lab.policy_file))
        return (client or self.client).mac in done.stdout

    def grant(self, client: Client | None = None, *more: str) -> None:
        """A session, which is in force on return."""
        self._capport("grant", (client or self.client).mac, *more)

    def revoke(self, client: Client | None = None) -> None:
        self._capport("revoke", (client or self.client).mac)

    def ask(self, url: str, *fields: str, client: Client | None = None) -> Answer:
        """The answer to a GET, which must come. Redirects are not followed."""
        said = [argument for field in fields for argument in ("-H", field)]
        trusted = ("--cacert", str(self.certificate))
        # As in the lab's DNS, which an unknown client may not ask that often.
        known = ("--resolve", f"{LOGIN}:443:{ROUTER4}", "--resolve", f"*:80:{ORIGIN4}")
        done = (client or self.client).curl("--include", *trusted, *known, *said, url)
        assert done.returncode == 0, f"{url}: {done.stderr}"
        head, _, rest = done.stdout.partition("\n\n")
        lines = [line.partition(":") for line in head.splitlines()[1:]]
        return Answer(
            int(head.split()[1]),
            {name.lower(): value.strip() for name, _, value in lines},
            rest.rpartition("\n")[0],
            frozenset(name for name, _, _ in lines),
        )

    def ask_until(self, status: int, url: str, *, client: Client | None = None) -> Answer:
        """The answer with `status`, which comes before long.

        A 302 comes late if the login server has just been too busy to answer the health check.
        """
        found: list[Answer] = []

        def answered() -> bool:
            found.append(self.ask(url, client=client))
            return found[-1].status == status

        wait_for(answered, message=f"{url}: never {status}")
        return found[-1]

    def requests(self) -> list[dict[str, Any]]:
        """Every request that has come to the origin's site in this test, in order."""
        lines = (self.lab.folder / "website.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def requests_for(self, host: str) -> list[dict[str, Any]]:
        """Those for one name."""
        return [asked for asked in self.requests() if asked["host"] == host]

    def _capport(self, *arguments: str) -> None:
        done = self.lab.capport(*arguments, "--policy", str(self.lab.policy_file))
        assert done.returncode == 0 or "no session" in done.stderr, done.stderr


@pytest.fixture(scope="session")
def whole_street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """The street, brought up once for all journeys."""
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    shown, key = certificate(tmp_path_factory.mktemp("login"), LOGIN)
    policy = POLICY.format(certificate=shown, key=key)
    with Lab(clients=3, policy=policy, names={LOGIN: ROUTER4}, name="journey") as lab:
        done = lab.origin.run("nft", REDIRECT)
        assert done.returncode == 0, done.stderr
        log = (lab.folder / "website.log").open("wb")
        lab.origin.start(sys.executable, str(Path(website.__file__)), str(lab.folder), log=log)
        wait_for((lab.folder / "website").exists, message="the site does not come up")
        answers = f"https://{LOGIN}/"
        wait_for(lambda: lab.client.status(answers, "--cacert", str(shown)) == 200)
        yield Street(lab, shown)


@pytest.fixture
def street(whole_street: Street) -> Iterator[Street]:
    """The street with no known client, and with no request to its site yet."""
    (whole_street.lab.folder / "website.jsonl").write_text("")
    yield whole_street
    with closing(open_store(str(whole_street.lab.policy.sessions.store))) as store:
        for session in tuple(store.sessions()):
            store.revoke(session.client)
