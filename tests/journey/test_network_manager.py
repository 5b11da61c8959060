"""NetworkManager unmodified in the lab: GNOME, KDE and phosh rely on it."""

from pathlib import Path

import pytest

import requires
from journey.conftest import Street
from journey.network_manager import CHECK, network_manager
from lab.namespaces import wait_for

pytestmark = [pytest.mark.lab, requires.tool("nmcli", "dbus-daemon")]


def test_it_sees_a_portal_until_the_grant_and_again_after_the_end(
    street: Street, tmp_path: Path
) -> None:
    client = street.lab.clients[1]
    with network_manager(tmp_path, client.namespace) as it:
        wait_for(lambda: it.connectivity() == "portal")
        assert street.requests_for(CHECK) == []
        street.grant(client)
        wait_for(lambda: it.connectivity() == "full")
        assert street.requests_for(CHECK) != []
        street.revoke(client)
        wait_for(lambda: it.connectivity() == "portal")
