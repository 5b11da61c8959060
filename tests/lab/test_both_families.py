"""A login server with an address of each family: each client is sent to the one it can reach."""

import re
from collections.abc import Iterator

import pytest

import requires
from capport.core.captivity import PATH
from lab.namespaces import wait_for
from lab.network import ORIGIN4, ORIGIN6, POLICY, ROUTER4, ROUTER6, Lab

pytestmark = pytest.mark.lab

BOTH = POLICY.replace(f"listen: {ROUTER4}:8511", f"listen: [{ROUTER4}:8511, '[{ROUTER6}]:8511']")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires.check(requires.namespaces())
    requires.check(requires.tool("nft", "dnsmasq", "curl"))
    with Lab(policy=BOTH, name="families") as it:
        yield it


each = pytest.mark.parametrize(
    ("origin", "login"),
    [(ORIGIN4, f"http://{ROUTER4}:8511/"), (f"[{ORIGIN6}]", f"http://[{ROUTER6}]:8511/")],
    ids=["IPv4", "IPv6"],
)


@each
def test_the_511_and_the_api_lead_to_a_page_of_the_clients_family(
    lab: Lab, origin: str, login: str
) -> None:
    refused = lab.client.curl("--globoff", f"http://{origin}/").stdout
    assert refused.endswith("\n511")
    (link,) = re.findall(r'<a href="([^"]+)"', refused)
    assert link.startswith(f"{login}?state=")
    page = lab.client.curl("--globoff", link).stdout
    assert "Terms of use" in page
    api = lab.client.curl("--globoff", "--include", f"{login}{PATH[1:]}").stdout
    assert f"Location: {login}?state=" in api


@each
def test_a_connectivity_check_is_sent_there_too(lab: Lab, origin: str, login: str) -> None:
    name = "connectivitycheck.gstatic.com"
    options = ("--globoff", "--include", "--resolve", f"{name}:80:{origin}")

    def location() -> str:
        said = lab.client.curl(*options, f"http://{name}/generate_204").stdout
        return "".join(re.findall(r"(?im)^location: (\S+)", said))

    wait_for(lambda: location().startswith(f"{login}?state="), message=f"no 302 to {login}")


def test_neither_address_is_open_to_those_beyond_the_router(lab: Lab) -> None:
    for login in (f"http://{ROUTER4}:8511/", f"http://[{ROUTER6}]:8511/"):
        done = lab.origin.run("curl", "--globoff", "--silent", "--max-time", "1", login)
        assert done.returncode == 28  # nothing came
