"""The commands inside mitmproxy."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
from mitmproxy import exceptions

from capport.core.client import Address, ClientId, Mac, parse_address, parse_mac
from capport.linux import Neighbours
from capport.stores import StoreError
from conftest import Origin, Portal, StartPortal
from proxy.wire import until


async def settled(portal: Portal, address: str, known: bool) -> None:
    """Waits until a command that works on a thread has done it."""
    await until(lambda: bool(portal.gate.known(portal.gate.client(address))) is known)


async def test_a_grant_and_a_revocation_are_in_force(portal: StartPortal, origin: Origin) -> None:
    ask = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port
    async with portal() as it:
        call = it.master.commands.execute
        assert call("portal.clients") == [["Nobody is known."]]
        call("portal.grant 127.0.0.1 2h")
        await settled(it, "127.0.0.1", known=True)
        assert call("portal.clients")[1][0] == "127.0.0.1"
        assert (await it.ask(ask)).startswith(b"HTTP/1.1 200")
        call("portal.revoke 127.0.0.1")
        await settled(it, "127.0.0.1", known=False)
        assert b" 511 " in await it.ask(ask)


async def test_a_blocked_client_is_not_listed_whatever_its_session(portal: StartPortal) -> None:
    async with portal("clients: [{address: 192.0.2.7, access: blocked}]\n") as it:
        it.grant("192.0.2.7")
        it.grant("192.0.2.8")
        assert [row[0] for row in it.master.commands.execute("portal.clients")] == [
            *("CLIENT", "192.0.2.8")
        ]


@pytest.mark.parametrize("who", ["10.0.9.1", "02:00:00:00:00:09"])
async def test_a_blocked_client_is_granted_nothing(portal: StartPortal, who: str) -> None:
    policy = (
        "clients: [{address: 10.0.9.0/24, access: blocked},"
        ' {mac: "02:00:00:00:00:09", access: blocked}]\n'
    )
    async with portal(policy) as it:
        why = f"^{who} is blocked by .*: a session would change nothing$"
        with pytest.raises(exceptions.CommandError, match=why):
            it.master.commands.execute(f"portal.grant {who}")
        assert [*it.gate.store.sessions()] == []


MAC, OTHER = "02:00:00:00:00:07", "02:00:00:00:00:08"


class Table(Neighbours):
    """A neighbour table: one device has two addresses, the other has one."""

    macs: ClassVar = {"192.0.2.7": MAC, "2001:db8::7": MAC, "192.0.2.8": OTHER}

    def find_mac(self, address: Address) -> Mac | None:
        return parse_mac(mac) if (mac := self.macs.get(str(address))) else None

    def addresses(self, mac: Mac) -> list[Address]:
        return [parse_address(address) for address, its in self.macs.items() if its == mac]


@pytest.mark.parametrize("who", ["192.0.2.7", "2001:db8::7", MAC])
@pytest.mark.parametrize("under", ["192.0.2.7", "2001:db8::7", MAC, f"{MAC}@192.0.2.7"])
async def test_a_device_is_revoked_whatever_its_session_is_filed_under(
    portal: StartPortal, who: str, under: str
) -> None:
    async with portal() as it:
        it.gate.neighbours = Table()
        it.grant(under)
        it.grant("192.0.2.8")
        it.master.commands.execute(f"portal.revoke {who}")
        await settled(it, "192.0.2.7", known=False)
        await settled(it, "2001:db8::7", known=False)
        assert it.gate.known(it.gate.client("192.0.2.8"))


async def test_of_a_pair_that_alone_is_revoked(portal: StartPortal) -> None:
    async with portal() as it:
        it.gate.neighbours = Table()
        it.grant(f"{MAC}@192.0.2.7")
        it.grant("2001:db8::7")
        it.master.commands.execute(f"portal.revoke {MAC}@192.0.2.7")
        await settled(it, "192.0.2.7", known=False)
        assert it.gate.known(it.gate.client("2001:db8::7"))


async def test_one_that_cannot_be_made_durable_does_not_keep_the_others_open(
    portal: StartPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with portal() as it:
        it.gate.neighbours = Table()
        revoke = it.gate.store.revoke

        def not_durable(client: ClientId) -> bool:
            revoke(client)
            raise StoreError("the disk is full")

        monkeypatch.setattr(it.gate.store, "revoke", not_durable)
        for under in (MAC, "192.0.2.7"):
            it.grant(under)
        it.master.commands.execute("portal.revoke 192.0.2.7")
        await settled(it, "192.0.2.7", known=False)


async def test_explain_says_which_rule_decided(portal: StartPortal) -> None:
    async with portal() as it:
        await it.ask(b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n")
        said = it.keeper.explain(it.flows.requests[0]).splitlines()
    assert said[0] == "Then NetworkAuthenticationRequired: 127.0.0.1 has no session"
    assert said[1] == "header_fields_too_large: says nothing"
    assert said[-1] == "unknown_client: 127.0.0.1 has no session"


async def test_explain_says_what_was_decided_then_and_what_would_be_now(
    portal: StartPortal, origin: Origin
) -> None:
    ask = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port
    async with portal() as it:
        await it.ask(ask)
        it.grant("127.0.0.1")
        said = it.keeper.explain(it.flows.requests[0]).splitlines()
        assert said[0] == "Then NetworkAuthenticationRequired: 127.0.0.1 has no session"
        assert said[1] == "Now Pass would be the verdict, by these rules:"
        assert said[-1].startswith("open_session: 127.0.0.1 is known for ")
        assert (await it.ask(ask)).startswith(b"HTTP/1.1 200")
        passed = it.flows.requests[-1]
        assert it.keeper.explain(passed).startswith("Then Pass: 127.0.0.1 is known for ")
        assert "Now " not in it.keeper.explain(passed)
        assert it.gate.revoke(ClientId("127.0.0.1"))
        said = it.keeper.explain(passed).splitlines()
        assert said[0].startswith("Then Pass: 127.0.0.1 is known for ")
        assert said[1] == "Now NetworkAuthenticationRequired would be the verdict, by these rules:"
        assert said[-1] == "unknown_client: 127.0.0.1 has no session"


async def test_explain_looks_at_the_condition_of_a_request(
    portal: StartPortal, origin: Origin
) -> None:
    head = "PUT http://127.0.0.1:{0}/ HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n{1}\r\n"
    async with portal("limits:\n  require_conditions: [127.0.0.1]\n") as it:
        it.grant("127.0.0.1")
        for condition, verdict in (("", "PreconditionRequired"), ('If-Match: "a"\r\n', "Pass")):
            await it.ask(head.format(origin.port, condition).encode())
            said = it.keeper.explain(it.flows.requests[-1])
            assert said.startswith(f"Then {verdict}: ")
            assert "Now " not in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("portal.grant nobody", "'nobody' is neither an address nor a MAC address"),
        ("portal.grant 192.0.2.7 soon", "soon"),
        ("portal.revoke 192.0.2.7", "192.0.2.7 has no session"),
    ],
)
async def test_a_command_that_cannot_be_done_says_why(
    portal: StartPortal, command: str, message: str
) -> None:
    async with portal() as it:
        with pytest.raises(exceptions.CommandError, match=message):
            it.master.commands.execute(command)


async def test_an_event_says_why_nobody_reaches_a_place(
    portal: StartPortal, tmp_path: Path
) -> None:
    async with portal(events=True) as it:
        it.grant("127.0.0.1")
        answer = await it.ask(b"GET http://224.0.0.1/ HTTP/1.1\r\nHost: 224.0.0.1\r\n\r\n")
    why = "224.0.0.1:80 is a multicast, link-local or broadcast address"
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert answer.endswith(f"\r\n\r\n502 Bad Gateway: {why}\n".encode())
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert (refused["status"], refused["because"]) == (502, why)
