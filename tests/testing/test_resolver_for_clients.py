"""The resolver in a command's namespace: what it answers, and that no input ends it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import dns
from mitmproxy.net.dns import types

from capport.testing.resolver_for_clients import ClientsResolver
from conftest import SOON

SOME = IPv4Address("192.0.2.3")
QUERY = (  # RFC 1035 section 4.1: an ordinary question for www.example.com, and its type
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00%c\x00\x01"
)


@contextlib.asynccontextmanager
async def asking(address: IPv4Address | None) -> AsyncIterator[socket.socket]:
    """A client's socket, connected to a resolver that gives `address` for every name."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        listening.setblocking(False)
        client.setblocking(False)
        listening.bind(("127.0.0.1", 0))
        client.connect(listening.getsockname())
        ClientsResolver(listening, lambda: address)
        yield client
        asyncio.get_running_loop().remove_reader(listening)


async def answer_to(client: socket.socket, data: bytes) -> dns.DNSMessage:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, data)
    async with asyncio.timeout(SOON):
        return dns.DNSMessage.unpack(await loop.sock_recv(client, 65535))


@pytest.mark.parametrize("address", [SOME, None])
async def test_a_question_about_an_ipv6_address_has_an_empty_answer(
    address: IPv4Address | None,
) -> None:
    async with asking(address) as client:
        answer = await answer_to(client, QUERY % types.AAAA)
        assert (answer.id, answer.response_code, answer.answers) == (0x1234, 0, [])


async def test_every_name_leads_to_the_address() -> None:
    async with asking(SOME) as client:
        (record,) = (await answer_to(client, QUERY % types.A)).answers
        assert (record.name, record.ipv4_address) == ("www.example.com", SOME)


@settings(max_examples=30)
@given(
    garbage=st.lists(
        st.binary(max_size=60) | st.builds(lambda tail: QUERY[:12] + tail, st.binary(max_size=60)),
        max_size=5,
    )
)
def test_what_is_no_question_gets_no_answer_and_the_next_one_does(garbage: list[bytes]) -> None:
    async def run() -> None:
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        async with asking(SOME) as client:
            for data in garbage:
                await asyncio.get_running_loop().sock_sendall(client, data)
            answer = await answer_to(client, QUERY % types.A)
            while answer.id != 0x1234 or not answer.answers:  # one of them was a question
                data = await asyncio.get_running_loop().sock_recv(client, 65535)
                answer = dns.DNSMessage.unpack(data)
        assert raised == []

    asyncio.run(run())
