"""The bytes of a refusal, as h11 would write the same reply."""

import time

from capport.core.http import date_fields
from capport.core.reply import Asked, reply_to
from capport.core.verdict import Refusal


def answer_to(verdict: Refusal, asked: Asked, *, close: bool) -> tuple[int, bytes]:
    """The status, and the whole response."""
    reply = reply_to(verdict, asked)
    fields = [*reply.fields, *date_fields(int(time.time()))]
    if close:
        fields.append(("Connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    start = f"HTTP/1.1 {reply.status} {reply.reason}\r\n{head}\r\n".encode("latin-1")
    return reply.status, start + reply.body
