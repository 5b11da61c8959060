"""Listings by netlink: one is repeated if the kernel changes something in the middle of it."""

import socket

import pytest

from capport.linux import netlink

KIND = 28


def answer(body: bytes, flags: int = 0) -> bytes:
    """All that a kernel sends as one listing of one message."""
    return netlink.message(KIND, body, flags) + netlink.message(netlink.DONE, b"", flags)


def test_a_listing_during_which_something_changed_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernel:
        kernel.send(answer(b"old!", netlink.INTERRUPTED))
        kernel.send(answer(b"new!"))
        assert [one.body for one in netlink.listing(ours, KIND, b"")] == [b"new!"]
        asked = [kernel.recv(netlink.DATAGRAM) for _ in range(2)]
        assert asked == [netlink.message(KIND, b"", netlink.DUMP)] * 2
        monkeypatch.setattr(netlink, "TRIES", 1)
        kernel.send(answer(b"old!", netlink.INTERRUPTED))
        with pytest.raises(OSError, match="changed during each of 1 listings; try again"):
            netlink.listing(ours, KIND, b"")
