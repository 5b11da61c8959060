"""The example of an external login server in the lab: on the router and beyond it.

The client asks for its page over IPv6, and reaches the login server over IPv4.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import requires
from lab.namespaces import Namespace, end, wait_for
from lab.network import ORIGIN4, POLICY, ROUTER4, Client, Lab

pytestmark = pytest.mark.lab

EXAMPLE = Path(__file__).resolve().parents[2] / "scripts" / "external-login-server"
PAGE = "http://www.example.com/news"


@contextmanager
def own_login_server(address: str, port: int) -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    policy, found = re.subn(
        r"login_server:\n.*\n", f"login_url: http://{address}:{port}/?state={{state}}\n", POLICY
    )
    assert found == 1
    with Lab(clients=2, name="own", policy=policy) as lab:
        where = lab.router if address == ROUTER4 else lab.origin
        command = (str(EXAMPLE), str(lab.folder / "api.sock"), address, str(port), "swordfish")
        with serving(where, address, port, *command):
            yield lab


@contextmanager
def serving(where: Namespace, address: str, port: int, *command: str) -> Iterator[None]:
    """Runs a web server of Python in `where` during the block, once it answers."""
    process = where.start(sys.executable, *command)
    look = ("curl", "-s", "-o", "/dev/null", f"http://{address}:{port}/")
    try:
        wait_for(lambda: where.run(*look).returncode == 0, message=f"{command} does not start")
        yield
    finally:
        end(process)


def got(client: Client, *arguments: str) -> str:
    done = client.run("curl", "-s", "-m", "60", "-w", " %{http_code}", *arguments)
    return done.stdout


def link(client: Client) -> str:
    """The link in the 511 that the client gets over IPv6."""
    said = got(client, "-6", "-H", "Accept: text/plain", PAGE)
    found = re.search(r"http://\S+\?state=\S+", said)
    assert found, said
    return found[0]


@pytest.mark.parametrize(("address", "port"), [(ROUTER4, 8088), (ROUTER4, 80), (ORIGIN4, 8088)])
def test_it_admits_the_client_that_was_refused_and_no_other_by_the_same_link(
    address: str, port: int
) -> None:
    with own_login_server(address, port) as lab:
        one, two = lab.clients
        to = link(one)
        assert urlsplit(to).hostname == address
        assert got(two, to, "-d", "word=swordfish").endswith(" 404")
        assert "The word" in got(one, to)
        assert PAGE in got(one, to, "-d", "word=swordfish")
        assert got(one, "-6", PAGE).endswith(" 200")
        assert got(two, "-6", PAGE).endswith(" 511")


def test_nothing_else_of_the_routers_is_open_for_it() -> None:
    other = ("-m", "http.server", "8089")
    with (
        own_login_server(ROUTER4, 8088) as lab,
        serving(lab.router, ROUTER4, 8089, *other),
    ):
        assert got(lab.client, f"http://{ROUTER4}:8088/").endswith(" 404")
        assert got(lab.client, "-m", "2", f"http://{ROUTER4}:8089/").endswith(" 000")
