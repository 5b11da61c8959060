"""ConnMan unmodified in the lab: what many small devices use."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pyroute2 import Ethtool  # type: ignore[import-untyped]

import requires
from conftest import SOON
from journey.conftest import LOGIN, Street
from journey.connman import CHECK, ConnMan, connman
from lab.namespaces import wait_for
from lab.network import Client

pytestmark = [pytest.mark.lab, requires.tool("connmand", "dbus-daemon")]

URL = f"http://{CHECK}/online/status.html"


@pytest.fixture
def client(street: Street) -> Client:
    """A lab for ConnMan alone, because it takes the interface over."""
    client = street.lab.clients[2]
    street.lab.router.call(_with_checksums, "port3")
    street.ask_until(302, URL)  # so that ConnMan gets it at once, too
    return client


def running(client: Client, folder: Path) -> AbstractContextManager[ConnMan]:
    return connman(folder, client.namespace, f"ethernet_{client.mac.replace(':', '')}_cable")


def test_an_unknown_clients_agent_is_asked_for_a_browser_and_it_is_online_after_the_grant(
    street: Street, client: Client, tmp_path: Path
) -> None:
    with running(client, tmp_path) as it:
        it.connect()
        # At the URL of its check, from which a browser comes to the login server.
        assert URL in it.hears("Connected (yes/no)?")
        assert it.state() == "ready"
        answer = street.ask_until(302, URL, client=client)
        assert answer.fields["location"].startswith(f"https://{LOGIN}/?state=")
        assert street.requests_for(CHECK) == []
        street.grant(client)
        it.type("yes")
        # It tries again after 1, 4, 9, 16 seconds, and so on, if a check was answered too late.
        wait_for(lambda: it.state() == "online", 2 * SOON)


def test_a_known_client_is_online_and_nobody_is_asked(
    street: Street, client: Client, tmp_path: Path
) -> None:
    street.grant(client)
    with running(client, tmp_path) as it:
        it.connect()
        wait_for(lambda: it.state() == "online")
        (request,) = street.requests_for(CHECK)
        assert request["fields"]["user-agent"].startswith("ConnMan/")
        assert "RequestBrowser" not in it.hears("", 0)


def _with_checksums(port: str) -> None:
    """Makes the kernel write checksums into what `port` sends, as a real network card would.

    ConnMan reads DHCP off the wire, and ignores packets without a checksum.
    """
    with Ethtool() as it:
        features = it.get_features(port)
        features.features["tx-checksum-ip-generic"].enable = False
        it.set_features(port, features)
