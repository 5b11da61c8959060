"""NetworkManager unmodified in the lab: what GNOME, KDE and phosh go by."""

from pathlib import Path

import pytest

import requires
from journey.conftest import Street
from journey.network_manager import CHECK, network_manager

pytestmark = [pytest.mark.lab, requires.tool("nmcli", "dbus-daemon")]


def test_it_sees_a_portal_until_the_grant_and_again_after_the_end(
    street: Street, tmp_path: Path
) -> None:
    client = street.lab.clients[1]
    with network_manager(tmp_path, client.namespace) as it:
        assert it.connectivity() == "portal"
        assert street.requests_for(CHECK) == []
        street.grant(client)
        assert it.connectivity() == "full"
        assert street.requests_for(CHECK) != []
        street.revoke(client)
        assert it.connectivity() == "portal"
