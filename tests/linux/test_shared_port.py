"""Sockets that share a port: the kernel chooses one of them for each client."""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

import requires
from capport.linux import shared_port
from lab.namespaces import Namespace, namespaces

ADDRESSES = {"127.0.0.1": "127.0.0.{}", "::1": "2001:db8::{}"}
CLIENTS = range(2, 42)


@pytest.fixture(scope="module")
def machine() -> Iterator[Namespace]:
    with namespaces("ports") as (found,):
        found.ip(*(f"address add 2001:db8::{n}/128 dev lo nodad" for n in CLIENTS))
        yield found


def meets(share: Sequence[Sequence[socket.socket]], at: tuple[str, int], client: str) -> int:
    """The number of the socket that gets a new connection of the client."""
    with socket.create_connection(at, 10, (client, 0)):
        for number, sockets in enumerate(share):
            for one in sockets:
                with contextlib.suppress(BlockingIOError):
                    one.accept()[0].close()
                    return number
    raise AssertionError("no socket has the connection")


@requires.namespaces()
@pytest.mark.xdist_group("shared_port")
@pytest.mark.parametrize("to", ADDRESSES)
def test_each_client_meets_one_of_the_sockets_and_all_have_a_share(
    machine: Namespace, to: str
) -> None:
    def spread() -> Counter[int]:
        share = shared_port.listen("", 0, 4, 100)
        at = to, share[0][0].getsockname()[1]
        clients = [ADDRESSES[to].format(number) for number in CLIENTS]
        first = [meets(share, at, client) for client in clients]
        again = [meets(share, at, client) for client in clients for _ in range(3)]
        assert again == [number for number in first for _ in range(3)]
        for sockets in share:
            for one in sockets:
                one.close()
        return Counter(first)

    found = machine.call(spread)
    assert set(found) == set(range(4))
    assert max(found.values()) <= len(CLIENTS) // 2


def test_where_anybody_listens_there_is_no_share_to_be_had() -> None:
    share = shared_port.listen("127.0.0.1", 0, 2, 100)
    port = share[0][0].getsockname()[1]
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        shared_port.listen("127.0.0.1", port, 2, 100)
    for (one,) in share:
        one.close()
