"""The lab's DHCP client (RFC 2131): a lease, and the portal's URL that came with it (RFC 8910)."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

_DISCOVER, _OFFER, _REQUEST, _ACK = 1, 2, 3, 5
_MASK, _ROUTER, _DNS, _REQUESTED, _LEASE, _TYPE, _SERVER, _ASK = 1, 3, 6, 50, 51, 53, 54, 55
_HOST_NAME, _CLIENT_ID = 12, 61
_CAPTIVE = 114  # RFC 8910 section 2.1
_COOKIE = b"\x63\x82\x53\x63"


@dataclass(frozen=True, slots=True)
class Lease:
    """What the router gave: an address with its prefix, a gateway, and so on."""

    address: str
    prefix: int
    router: str
    dns: str
    seconds: int
    captive_portal: str | None


def lease(
    interface: str, mac: str, seconds: float = 60, *, host_name: str = "", client_id: bytes = b""
) -> Lease:
    """Gets a lease for `interface`; the client names itself so. Raises TimeoutError."""
    said = {_HOST_NAME: host_name.encode(), _CLIENT_ID: client_id}
    itself = {code: value for code, value in said.items() if value}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
        talk.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        talk.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        talk.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        talk.bind(("", 68))
        end, patience = time.monotonic() + seconds, 0.5
        while time.monotonic() < end:
            talk.settimeout(patience)  # a server that is there may be slow
            patience *= 1.5
            exchange = os.urandom(4)
            sought = {_TYPE: bytes([_DISCOVER]), **itself}
            if not (offer := _ask(talk, exchange, mac, sought, _OFFER)):
                continue
            address, options = offer
            wanted = {_TYPE: bytes([_REQUEST]), _REQUESTED: address, _SERVER: options[_SERVER]}
            if found := _ask(talk, exchange, mac, {**wanted, **itself}, _ACK):
                return _lease(*found)
    raise TimeoutError(f"no DHCP lease on {interface} in {seconds} s")


def _ask(
    talk: socket.socket, exchange: bytes, mac: str, options: Mapping[int, bytes], answer: int
) -> tuple[bytes, dict[int, bytes]] | None:
    hardware = bytes.fromhex(mac.replace(":", ""))
    # RFC 2131 section 4.1: the broadcast flag, because we have no address for an answer yet.
    head = struct.pack("!4B4sHH16x16s192x", 1, 1, 6, 0, exchange, 0, 0x8000, hardware)
    asked = {**options, _ASK: bytes([_MASK, _ROUTER, _DNS, _LEASE, _CAPTIVE])}
    tail = b"".join(bytes([code, len(value)]) + value for code, value in asked.items())
    talk.sendto(head + _COOKIE + tail + b"\xff", ("255.255.255.255", 67))
    try:
        while True:
            packet = talk.recv(2048)
            found = _options(packet[240:])
            if packet[4:8] == exchange and found.get(_TYPE) == bytes([answer]):
                return packet[16:20], found
    except TimeoutError:
        return None


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data and data[0] != 255:
        if data[0] == 0:
            data = data[1:]
            continue
        found[data[0]] = data[2 : 2 + data[1]]
        data = data[2 + data[1] :]
    return found


def _lease(address: bytes, options: Mapping[int, bytes]) -> Lease:
    captive = options.get(_CAPTIVE)
    return Lease(
        socket.inet_ntoa(address),
        int.from_bytes(options[_MASK]).bit_count(),
        socket.inet_ntoa(options[_ROUTER][:4]),
        socket.inet_ntoa(options[_DNS][:4]),
        int.from_bytes(options[_LEASE]),
        captive.decode() if captive else None,
    )
