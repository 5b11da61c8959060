"""For tests of DNS: questions at a given pace, the two ends of a tunnel, and what it carries."""

import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

A, TXT, AAAA, HTTPS = 1, 16, 28, 65
_CNAME = 5
_TIMESTAMP = 35  # SO_TIMESTAMPNS of socket(7), which Python does not name
_LATE = 0.01  # seconds that a question may be late: the two between two looks, and some for work


def wire(name: str) -> bytes:
    """A name in a message (RFC 1035 section 3.1)."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name: bytes, number: int = 1, kind: int = A) -> bytes:
    """A message with one question."""
    return struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, 1)


def exchange(address: str, name: str, kind: int = A, seconds: float = 5) -> bytes:
    """The answer to one question over UDP, asked again each second. Raises OSError."""
    end = time.monotonic() + seconds
    with socket.socket(_family(address), socket.SOCK_DGRAM) as talk:
        talk.settimeout(1)
        talk.connect((address, 53))
        while True:
            talk.send(question(wire(name), kind=kind))
            try:
                return talk.recv(4096)
            except TimeoutError:
                if time.monotonic() > end:
                    raise


def exchange_by_tcp(address: str, name: str, seconds: float = 30) -> bytes:
    """The answer to one question over TCP (RFC 7766). Raises OSError."""
    with socket.create_connection((address, 53), seconds) as talk:
        asked = question(wire(name))
        talk.sendall(len(asked).to_bytes(2) + asked)
        with talk.makefile("rb") as answers:
            return answers.read(int.from_bytes(answers.read(2)))


def found(
    address: str, asked: Iterable[tuple[float, str]], tries: int = 3, patience: float = 2
) -> list[str]:
    """Asks for each name at its second from now; the names that were answered.

    As a device does: each from a port of its own, and again if no answer comes in time. While this
    process waits for a processor, the device's time stands still: it would send at once what was
    due meanwhile, which no device at that pace does.
    """
    began = time.monotonic()
    due = sorted((at, name, tries) for at, name in asked)
    waiting: dict[int, tuple[socket.socket, str, int, float]] = {}
    answered: list[str] = []
    poll = select.poll()
    while due or waiting:
        now = time.monotonic() - began
        if due and (stood := now - due[0][0] - _LATE) > 0:
            began, now = began + stood, now - stood
        while due and due[0][0] <= now:
            _, name, left = due.pop(0)
            talk = socket.socket(_family(address), socket.SOCK_DGRAM)
            talk.connect((address, 53))
            talk.send(question(wire(name)))
            poll.register(talk, select.POLLIN)
            waiting[talk.fileno()] = (talk, name, left - 1, now + patience)
        ready = {descriptor for descriptor, _ in poll.poll(2)}
        for descriptor, (talk, name, left, until) in list(waiting.items()):
            if descriptor not in ready and until > now:
                continue
            if descriptor in ready:
                answered.append(name)
            elif left:
                due.append((now, name, left))
                due.sort()
            poll.unregister(talk)
            del waiting[descriptor]
            talk.close()
    return answered


def flood(
    address: str, names: Iterable[bytes], rate: float, seconds: float, kind: int = A
) -> tuple[list[tuple[float, bytes]], list[tuple[float, bytes]]]:
    """Sends `rate` questions a second, answered or not: the names and the answers, and when."""
    talks = [socket.socket(_family(address), socket.SOCK_DGRAM) for _ in range(20)]
    poll = select.poll()
    for talk in talks:
        talk.connect((address, 53))
        talk.setblocking(False)
        talk.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
        poll.register(talk, select.POLLIN)
    began, sent, answers = time.monotonic(), [], []
    for number, name in enumerate(names):
        while (wait := began + number / rate - time.monotonic()) > 0:
            poll.poll(wait * 1000)
            for talk in talks:
                with suppress(OSError):
                    at, data, _ = _received(talk)
                    answers.append((at, data))
        if time.monotonic() > began + seconds:
            break
        with suppress(OSError):
            sent.append((time.time(), name))
            talks[number % len(talks)].send(question(name, number % 65536, kind))
    for talk in talks:
        talk.close()
    return sent, answers


def _received(talk: socket.socket) -> tuple[float, bytes, tuple[str, int]]:
    """A datagram, its sender, and when the kernel got it, however late this process reads it."""
    data, ((_, _, stamp),), _, peer = talk.recvmsg(4096, 100)
    seconds, nanoseconds = struct.unpack("@ll", stamp)
    return seconds + nanoseconds / 1e9, data, peer


def in_any_second(carried: Iterable[tuple[float, float]]) -> float:
    """The most bytes within one second, of bytes and when they came."""
    most = total = 0.0
    first = 0
    carried = sorted(carried)
    for at, size in carried:
        total += size
        while carried[first][0] < at - 1:
            total -= carried[first][1]
            first += 1
        most = max(most, total)
    return most


def payload(answer: bytes) -> float:
    """Bytes that an answer's author chose: of a single address, the address and its time to live.

    The times are at most 60 s. Of other records everything counts.
    """
    records = answer[answer.index(0, 12) + 5 :]
    (count,) = struct.unpack_from("!H", answer, 6)
    if not count:
        return 0.5  # the status
    one = count == 1 and records[:2] == b"\xc0\x0c" and records[3] in {A, AAAA}
    return len(records) - (11 if one else 0)


def address_record() -> tuple[int, bytes]:
    """One IPv4 address, which may not be cached."""
    return 1, struct.pack("!3HIH", 0xC00C, A, 1, 0, 4) + os.urandom(4)


def address6_record() -> tuple[int, bytes]:
    """One IPv6 address."""
    return 1, struct.pack("!3HIH", 0xC00C, AAAA, 1, 0, 16) + os.urandom(16)


def alias_record() -> tuple[int, bytes]:
    """A CNAME of 60 characters."""
    alias = b"\x3c" + os.urandom(30).hex().encode() + b"\0"
    return 1, struct.pack("!3HIH", 0xC00C, _CNAME, 1, 0, len(alias)) + alias


def many_addresses() -> tuple[int, bytes]:
    """Fifteen addresses."""
    return 15, b"".join(address_record()[1] for _ in range(15))


class Tunnel:
    """The name server at a tunnel's far end: `reached` has the names that came, and when.

    `records` makes its answers: how many records, and they themselves.
    """

    def __init__(self, address: str, port: int, records: Callable[[], tuple[int, bytes]]) -> None:
        self.reached: list[tuple[float, bytes]] = []
        self._records = records
        self._open = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.1)
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
        self._socket.bind((address, port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._open = False
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while self._open:
            with suppress(TimeoutError):
                at, asked, peer = _received(self._socket)
                end = asked.index(0, 12) + 1
                self.reached.append((at, asked[12:end]))
                count, records = self._records()
                head = asked[:2] + struct.pack("!5H", 0x8580, 1, count, 0, 0)
                self._socket.sendto(head + asked[12 : end + 4] + records, peer)


def random_names(size: int, domain: str) -> Iterable[bytes]:
    """Names below `domain` with so many bytes before it, each another."""
    for _ in itertools.count():
        free = os.urandom(size).hex().encode()[:size]
        labels = (free[n : n + 60] for n in range(0, size, 60))
        yield b"".join(bytes([len(label)]) + label for label in labels) + wire(domain)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
