"""Portals of other kinds in the lab: what a client meets, and that a grant ends it."""

import subprocess

import pytest

import requires
from capport.testing.kinds import KINDS, OURS
from lab.network import LOGIN_NAMES, WITH_TLS, Lab

pytestmark = [pytest.mark.lab, requires.namespaces(), requires.tool("nft", "dnsmasq", "curl")]

# What curl says (its exit status) over http and over https, and a part of the answer over http.
MET = {
    "redirect": (0, 35, "Location: https://login.example.net/"),
    "page": (0, 35, "Welcome to our Wi-Fi"),
    "script": (0, 35, "window.location="),
    "forged-tls": (0, 60, "Location: https://login.example.net/"),
    "silent": (28, 28, ""),
    "dns-lie": (0, 35, "Location: https://login.example.net/"),
    "reset": (56, 35, ""),
}


def test_each_kind_is_here() -> None:
    assert [OURS, *MET] == list(KINDS)  # the other tests of the lab are about OURS


@pytest.mark.parametrize("kind", MET)
def test_a_client_meets_that_kind_until_it_is_granted_a_session(kind: str) -> None:
    with Lab(policy=WITH_TLS, names=LOGIN_NAMES, kind=kind) as lab:

        def ask(scheme: str) -> "subprocess.CompletedProcess[str]":
            url, seconds = f"{scheme}://www.example.com/", "3" if kind == "silent" else "60"
            return lab.client.run("curl", "-sSif", "-m", seconds, url)

        plain, secure = ask("http"), ask("https")
        http, https, said = MET[kind]
        assert (plain.returncode, secure.returncode) == (http, https), (plain, secure)
        assert said in plain.stdout
        assert lab.reached() == []
        lab.capport("grant", lab.client.mac, "--policy", str(lab.policy_file))
        assert "origin, to 2001:db8:1:" in ask("http").stdout
