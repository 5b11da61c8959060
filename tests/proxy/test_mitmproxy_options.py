"""mitmproxy's options: what the gate needs is forced, what would open it is refused."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import exceptions, options
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from capport.proxy import mitmproxy_options
from capport.service.noted_ports import NotedPorts
from conftest import LOGIN, Origin, StartPortal, until_closed
from ports import free_port
from proxy.wire import Dialled, until

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"

OPENING: list[tuple[str, Any, str]] = [
    ("ignore_hosts", [".*"], "set ignore_hosts .*"),
    ("allow_hosts", ["x"], "set allow_hosts x"),
    ("tcp_hosts", [".*"], "set tcp_hosts .*"),
    ("udp_hosts", [".*"], "set udp_hosts .*"),
    ("stream_large_bodies", "1m", "set stream_large_bodies 1m"),
    ("body_size_limit", "1m", "set body_size_limit 1m"),
    ("emudhra", True, "set emudhra true"),
    ("emudhra_old", True, "set emudhra_old true"),
    ("connection_strategy", "eager", "set connection_strategy eager"),
    ("onboarding", True, "set onboarding true"),
    ("block_global", True, "set block_global true"),
    ("upstream_cert", True, "set upstream_cert true"),
    ("validate_inbound_headers", False, "set validate_inbound_headers false"),
    ("mode", ["wireguard"], "set mode wireguard"),
    ("mode", ["reverse:http://192.0.2.1"], "set mode reverse:http://192.0.2.1"),
    ("mode", ["upstream:http://192.0.2.1"], "set mode upstream:http://192.0.2.1"),
    ("mode", ["local:nobody"], "set mode local:nobody"),
    ("mode", ["regular", "dns"], "set mode regular dns"),
    ("mode", ["no mode"], "set mode nonsense"),
    ("portal_sessions", "/elsewhere", "set portal_sessions /elsewhere"),
    ("portal_api", "127.0.0.1:8512", "set portal_api 127.0.0.1:8512"),
    ("portal_events", "/no/such/folder/events", "set portal_events /no/such/folder/events"),
    ("portal_policy", "/no/such/policy.yaml", "set portal_policy /no/such/policy.yaml"),
    ("portal_events", "~no-such-user/events", "set portal_events ~no-such-user/events"),
    ("portal_policy", "~no-such-user/x.yaml", "set portal_policy ~no-such-user/x.yaml"),
]


async def test_what_would_open_the_gate_is_rolled_back_while_it_runs(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        for name, value, command in OPENING:
            if name not in it.master.options:
                assert name.startswith("emudhra")  # new in mitmproxy 12.3
                continue
            before = getattr(it.master.options, name)
            with pytest.raises(exceptions.OptionsError) as refused:
                it.master.options.update(**{name: value})
            assert "\n" not in str(refused.value).strip(), name
            assert getattr(it.master.options, name) == before, name
            with pytest.raises((exceptions.CommandError, exceptions.OptionsError)):
                it.master.commands.execute(command)
            assert getattr(it.master.options, name) == before, name
        assert b" 511 " in await it.talk(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert it.master.options.mode == ["transparent"]
    assert origin.connections == 0


async def test_a_reset_of_every_option_leaves_what_the_gate_needs(
    portal: StartPortal, origin: Origin
) -> None:
    async with portal() as it:
        with pytest.raises((exceptions.CommandError, exceptions.OptionsError)):
            it.master.commands.execute("options.reset")
        for name, value in mitmproxy_options.FORCED.items():
            assert getattr(it.master.options, name) == value, name
        there = f"127.0.0.1:{origin.port}"
        request = f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n"
        assert b" 511 " in await it.talk(request.encode())
    assert origin.connections == 0


async def test_another_policy_is_in_force_once_it_is_set(
    portal: StartPortal, origin: Origin, tmp_path: Path
) -> None:
    there = f"127.0.0.1:{origin.port}"
    request = f"GET http://{there}/ HTTP/1.1\r\nHost: {there}\r\nConnection: close\r\n\r\n".encode()
    other = tmp_path / "other.yaml"
    other.write_text(f"login_url: {LOGIN}\n{KNOWN}")
    async with portal() as it:
        assert b" 511 " in await it.talk(request)
        it.master.options.update(portal_policy=str(other))
        assert b" 200 OK" in await it.talk(request)
        other.write_text("login_url: [\n")
        with pytest.raises(exceptions.OptionsError, match=r"other\.yaml:"):
            it.master.options.update(portal_policy=f"{other.parent}/./other.yaml")
        assert b" 200 OK" in await it.talk(request)


async def test_a_port_that_mitmproxy_opens_or_closes_later_is_noted(
    portal: StartPortal, tmp_path: Path
) -> None:
    store = str(tmp_path / "sessions.db")
    ports = NotedPorts(store)
    async with portal(sessions=store) as it:
        assert {*ports} == {it.port}
        it.master.options.update(mode=["regular", f"regular@127.0.0.1:{free_port()}"])
        await until(lambda: len(ports) == 2)
        assert it.port in ports
        it.master.options.update(mode=["regular"])
        await until(lambda: len(ports) == 1)
    assert {*ports} == {it.port}  # so `capport explain` says the same while the portal is stopped


async def test_eager_is_never_seen_by_an_unknown_client(
    portal: StartPortal, origin: Origin, dialled: Dialled
) -> None:
    dialled("127.0.0.1", origin.port)
    async with portal(mode="transparent") as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        with pytest.raises(exceptions.OptionsError):
            it.master.options.update(connection_strategy="eager")
        assert await until_closed(reader, 0.3) == b""
        writer.close()
    assert origin.connections == 0


@pytest.mark.parametrize(
    "mode", ["regular", "transparent", "socks5", "tun", "regular@8081", "socks5@127.0.0.1:1080"]
)
def test_what_the_portal_serves_is_served(mode: str) -> None:
    with taddons.context(Proxyserver()) as it:
        it.options.update_known(**mitmproxy_options.FORCED)
        it.options.update(mode=[mode])
        mitmproxy_options.check(it.options)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["portal_policy"], "portal_policy needs one value; it was given none"),
        (["portal_policy="], "portal_policy needs one value; it was given none"),
        (["portal_policy=a", "portal_policy=b"], "it was given 2: a, b"),
        (["portal_polcy=a"], "portal_polcy is not an option; did you mean portal_policy?"),
        (["potral_policy=a"], "potral_policy is not an option; did you mean portal_policy?"),
        (["portal_session=a"], "did you mean portal_sessions?"),
        (["portal_x=a"], "portal_x is not an option"),
        (["portalpolicy=a"], "did you mean portal_policy?"),
    ],
)
async def test_what_mitmproxy_would_drop_in_silence_is_an_error(
    given: list[str], want: str
) -> None:
    opts = options.Options()
    opts.set(*given, defer=True)
    with pytest.raises(mitmproxy_options.Unusable) as refused:
        mitmproxy_options.check_deferred(opts)
    assert want in str(refused.value)


async def test_what_is_somebody_elses_is_let_be() -> None:
    opts = options.Options()
    opts.set("portal_policy=a", "my_option=b", "proxy_portal", "policy=x", defer=True)
    mitmproxy_options.check_deferred(opts)
