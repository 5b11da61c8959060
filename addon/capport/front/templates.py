"""Renders a refusal once for each verdict, media type and language, then fills in what differs.

That is the state in the login URL, the length of the body with it, and the date. The result is what
h11 writes for the same reply (`proxy/layers/http1.py`).
"""

import time
from dataclasses import fields, replace
from operator import attrgetter
from typing import Final

from capport.core.bounded_map import BoundedMap
from capport.core.client import Address
from capport.core.http import date_fields
from capport.core.policy import Policy
from capport.core.reply import Asked, reply_to
from capport.core.verdict import NetworkAuthenticationRequired, SignIn
from capport.gate import AT_ONCE, AtOnce

MOST: Final = 256
"""The most templates. Each keeps its 3 KB twice: 2 MB in all."""

_STATE: Final = "capport-state"  # stands for the state until it is filled in
# What a reply depends on in a verdict: not `because`, which names the client.
_FACTS: Final = {
    kind: attrgetter(*(it.name for it in fields(kind) if it.name != "because")) for kind in AT_ONCE
}

type Key = tuple[object, ...]


class Template:
    """A response, split where its parts differ from one answer to the next."""

    def __init__(self, verdict: AtOnce, asked: Asked, *, close: bool) -> None:
        reply = reply_to(verdict, replace(asked, method="GET"))
        head = "".join(f"{name}: {value}\r\n" for name, value in reply.fields)
        start = f"HTTP/1.1 {reply.status} {reply.reason}\r\n{head}".encode("latin-1")
        length = b"Content-Length: "
        before, _, after = start.partition(length + b"%d\r\n" % len(reply.body))
        self.status = reply.status
        self._before = before + length
        self._after = b"\r\n" + after
        self._end = b"Connection: close\r\n\r\n" if close else b"\r\n"
        if asked.method != "HEAD":
            self._end += reply.body
        self._states = reply.body.count(_STATE.encode())
        self._length = len(reply.body) - self._states * len(_STATE)
        self._second = -1
        self._around_states: list[bytes] = []
        self._without_state = b""

    def fill(self, state: bytes, second: int) -> bytes:
        """The response, with `state` in the login URL, at that second of the wall clock."""
        if second != self._second:
            date = "".join(f"{name}: {value}\r\n" for name, value in date_fields(second))
            whole = self._after + date.encode() + self._end
            self._around_states = whole.split(_STATE.encode())
            self._second = second
            self._without_state = self._filled(b"")
        return self._filled(state) if state else self._without_state

    def _filled(self, state: bytes) -> bytes:
        length = self._length + self._states * len(state)
        return b"%b%d%b" % (self._before, length, state.join(self._around_states))


kept = BoundedMap[Key, Template](MOST)


def answer_to(
    verdict: AtOnce,
    state: str | None,
    asked: Asked,
    policy: Policy,
    address: Address,
    *,
    close: bool,
) -> tuple[int, bytes]:
    """The status and the bytes of the response. `address` is the client's; `policy` decided."""
    key = (
        _FACTS[type(verdict)](verdict),
        type(verdict),
        asked.shape,
        close,
        state is None,
        policy.login_server is None,  # then a URL without {state} gets no state
    )
    template = kept.get(key)
    if template is None:
        if isinstance(verdict, NetworkAuthenticationRequired | SignIn):
            url = policy.login_url_with(None if state is None else _STATE, address)
            verdict = replace(verdict, login_url=url)
        template = kept[key] = Template(verdict, asked, close=close)
    return template.status, template.fill((state or "").encode(), int(time.time()))
