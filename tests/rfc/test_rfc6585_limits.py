"""RFC 6585 sections 4, 5, 7.2 and 7.3: 429 and 431 over the wire, and clients that are dropped."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import urllib3

import requires
from capport.core.client import Client, parse_address, parse_mac
from capport.core.decision import HttpRequest
from capport.core.place import Place
from capport.core.verdict import TooManyRequests
from capport.gate import Gate
from capport.policy import policy_file
from capport.stores.memory import MemoryStore
from conftest import SOON, Portal, StartPortal
from proxy.http2 import INTERCEPT, Http2, tls
from proxy.wire import Answer, Dialled, answers, until

KNOWN = "clients:\n  - {address: 127.0.0.1, access: known}\n"
URL = "http://www.example.com/"
GET = f"GET {URL} HTTP/1.1\r\nHost: www.example.com\r\n".encode()
POLICIES = Path(__file__).resolve().parents[2] / "policies"


def limits(**rates: str) -> str:
    return "limits:\n" + "".join(f"  {name}: {rate}\n" for name, rate in rates.items())


async def ask(it: Portal, fields: bytes = b"") -> Answer:
    (answer,) = answers(await it.ask(GET + fields + b"\r\n"))
    return answer


# Section 4


@pytest.mark.rfc(6585, "4", "MAY include a Retry-After header")
async def test_4_retry_after_is_exact_to_the_second(portal: StartPortal) -> None:
    async with portal(limits(unknown_requests="{count: 2, per: 61s}")) as it:
        began = it.gate.now()
        it.gate.now = lambda: began
        assert [(await ask(it)).status for _ in range(3)] == [511, 511, 429]
        wait = int((await ask(it)).fields["retry-after"])
        assert wait == 31  # half of 61 s, and not a second less
        it.gate.now = lambda: began + wait - 1
        assert (await ask(it)).fields["retry-after"] == "1"
        it.gate.now = lambda: began + wait
        assert (await ask(it)).status == 511


@pytest.mark.rfc(6585, "4", "SHOULD include details explaining the condition")
async def test_4_should_include_details_explaining_the_condition(portal: StartPortal) -> None:
    async with portal(limits(unknown_requests="{count: 2, per: 1m}")) as it:
        now = it.gate.now()
        it.gate.now = lambda: now
        for _ in range(2):
            await ask(it)
        for accept, says in (
            (b"text/html", b"<h1>Too many requests</h1>"),
            (b"application/json", b'"detail": "'),
            (b"text/plain", b"429 Too Many Requests: "),
        ):
            answer = await ask(it, b"Accept: " + accept + b"\r\n")
            assert answer.status == 429
            assert says in answer.body
            assert b"2 requests in 60 seconds" in answer.body
            assert b"30 seconds" in answer.body


@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
async def test_4_one_budget_over_http_1_and_2(portal: StartPortal, dialled: Dialled) -> None:
    dialled("192.0.2.80", 443)
    few = INTERCEPT + limits(unknown_requests="{count: 4, per: 1h}")
    async with portal(few, mode="transparent") as it:
        client = await tls(it, "h2")
        for _ in range(2):
            assert (await client.answer(client.ask())).status == 511
        assert [(await ask(it)).status for _ in range(3)] == [511, 511, 429]
        late = await client.answer(client.ask())
        assert (late.status, late.fields["retry-after"]) == (429, "900")
        await client.close()


@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
async def test_4_a_client_that_obeys_retry_after_gets_its_answer(portal: StartPortal) -> None:
    """urllib3's Retry (pip, requests) waits for the second, and is not refused again."""
    async with portal(limits(unknown_requests="{count: 2, per: 2s}")) as it:
        retry = urllib3.Retry(5, status_forcelist=[429], raise_on_status=False)
        for _ in range(2):
            assert (await ask(it)).status == 511
        response = await asyncio.to_thread(fetch, it, retry)
        assert response.status == 511
        assert response.retries is not None
        assert [one.status for one in response.retries.history] == [429]


@requires.tool("curl")
@pytest.mark.rfc(6585, "4", "the user has sent too many requests in a given amount of time")
async def test_4_so_does_curl_when_it_is_told_to_try_again(portal: StartPortal) -> None:
    async with portal(limits(unknown_requests="{count: 1, per: 1s}")) as it:
        assert (await ask(it)).status == 511
        asked = ("--silent", "--verbose", "--retry", "5", "--proxy", f"http://127.0.0.1:{it.port}")
        done = await asyncio.to_thread(
            subprocess.run, ["curl", *asked, URL], capture_output=True, text=True, timeout=SOON
        )
        statuses = [it.split()[2] for it in done.stderr.splitlines() if it.startswith("< HTTP/")]
        assert statuses == ["429", "511"]


def fetch(it: Portal, retry: urllib3.Retry) -> urllib3.BaseHTTPResponse:
    with urllib3.ProxyManager(f"http://127.0.0.1:{it.port}") as manager:
        return manager.request("GET", URL, retries=retry, timeout=SOON)


# Section 5


LARGE = limits(header_field="1KiB", header_section="4KiB")


async def asked_by_http2(it: Portal, *fields: tuple[str, str], path: str = "/") -> tuple[Any, ...]:
    """The status and the body of the answer, and whether the connection ended with a GOAWAY."""
    client = await tls(it, "h2")
    stream = await client.answer(client.ask(*fields, path=path))
    if stream.status == 431:
        await until(lambda: client.goodbye is not None)
    said = stream.status, stream.body.lower(), client.goodbye is not None
    await client.close()
    return said


@pytest.mark.rfc(
    6585,
    "5",
    "both when the set of header fields in total is too large, and when a single header field is"
    " at fault",
)
async def test_5_one_field_or_all_of_them_over_http_2(
    portal: StartPortal, dialled: Dialled
) -> None:
    dialled("192.0.2.80", 443)
    async with portal(INTERCEPT + LARGE, mode="transparent") as it:
        field = await asked_by_http2(it, ("x-large", "a" * 2000))
        assert (field[0], b"x-large" in field[1], field[2]) == (431, True, True)
        every = await asked_by_http2(it, *((f"x-{n}", "a" * 900) for n in range(5)))
        assert (every[0], b"x-1" in every[1], every[2]) == (431, False, True)
        target = await asked_by_http2(it, path="/" + "a" * 5000)
        assert (target[0], target[2]) == (431, True)
        assert (await asked_by_http2(it, ("x-small", "a" * 900)))[0] == 511


@pytest.mark.rfc(
    6585,
    "5",
    "both when the set of header fields in total is too large, and when a single header field is"
    " at fault",
)
async def test_5_the_size_is_what_hpack_makes_of_it(portal: StartPortal, dialled: Dialled) -> None:
    """A field that was sent once takes one byte later: forty are some 40 bytes, and too large."""
    dialled("192.0.2.80", 443)
    async with portal(INTERCEPT + LARGE, mode="transparent") as it:
        client = await tls(it, "h2")
        field = ("x-again", "a" * 900)
        assert (await client.answer(client.ask(field))).status == 511
        before = sent(client)
        large = await client.answer(client.ask(*[field] * 40))
        assert sent(client) - before < 200
        assert large.status == 431
        await client.close()
        client = await tls(it, "h2")
        await client.answer(client.ask(field))
        beyond = client.ask(*[field] * 100)  # more than h2 decodes
        await until(lambda: client.gone)
        assert (beyond.status, client.goodbye is not None) == (0, True)
        await client.close()


def sent(client: Http2) -> int:
    """Bytes that the client has sent, by TCP's own count."""
    info = client.writer.get_extra_info("socket").getsockopt(6, 11, 232)  # TCP_INFO
    return int.from_bytes(info[120:128], "little")  # tcpi_bytes_acked


@pytest.mark.rfc(6585, "5", "SHOULD specify which header field was too large")
@pytest.mark.parametrize("who", ["", KNOWN], ids=["unknown", "known"])
async def test_5_a_field_that_is_too_large_to_be_read_is_named_all_the_same(
    portal: StartPortal, who: str
) -> None:
    async with portal(who) as it:
        answer = await ask(it, b"Accept: */*\r\nCookie: " + b"a" * 70_000 + b"\r\n")
        assert (answer.status, answer.fields["connection"]) == (431, "close")
        assert answer.fields["cache-control"] == "no-store"
        assert b"cookie" in answer.body
        name = b"<b>" + b"x" * 40_000
        answer = await ask(it, name + b": " + b"a" * 40_000 + b"\r\n")
        assert (answer.status, b"<b>" in answer.body) == (431, False)
        assert len(answer.body) < 4000
        answer = await ask(it, b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(100)))
        assert (answer.status, b"x-1" in answer.body) == (431, False)


@pytest.mark.parametrize("who", ["", KNOWN], ids=["unknown", "known"])
async def test_5_a_head_that_is_too_large_to_be_read_is_answered_in_the_form_asked_for(
    portal: StartPortal, who: str
) -> None:
    large = b"Cookie: " + b"a" * 70_000 + b"\r\n"
    async with portal(who) as it:
        answer = await ask(it, b"accept: application/json\r\nAccept-Language: de\r\n" + large)
        assert json.loads(answer.body)["detail"].startswith("Das Header-Feld")
        answer = await ask(it, b"Accept: text/plain\r\n" + large)
        assert answer.body.startswith(b"431 Request Header Fields Too Large: The header field")
        answer = await ask(it, b"Accept: text/plain\r\n" + b"X: a\r\n" * 600)
        assert answer.body.startswith(b"431 Request Header Fields Too Large: ")


@pytest.mark.parametrize("who", ["", KNOWN], ids=["unknown", "known"])
async def test_5_the_connection_ends_after_a_431(portal: StartPortal, who: str) -> None:
    async with portal(LARGE + who) as it:
        data = await it.talk(GET + b"X-Large: " + b"a" * 2000 + b"\r\n\r\n" + GET + b"\r\n")
        (answer,) = answers(data)
        assert (answer.status, answer.fields["connection"]) == (431, "close")


@pytest.mark.rfc(6585, "5", "MAY be resubmitted after reducing the size")
async def test_5_a_smaller_request_is_answered_as_ever(portal: StartPortal) -> None:
    async with portal(LARGE) as it:
        assert (await ask(it, b"X-Large: " + b"a" * 2000 + b"\r\n")).status == 431
        assert (await ask(it, b"X-Large: " + b"a" * 200 + b"\r\n")).status == 511


# Sections 7.2 and 7.3


@pytest.mark.rfc(6585, "7.2", "it may be more appropriate to just drop connections")
async def test_7_2_a_client_that_does_not_obey_is_answered_so_often_and_then_dropped(
    portal: StartPortal,
) -> None:
    """urllib3 repeats every 511 and 429 at once. Another client is served as before."""
    count = {"unknown_requests": "{count: 5, per: 1h}", "drop_after": "{count: 30, per: 1h}"}
    async with portal(limits(**count)) as it:
        storm = urllib3.Retry(
            200, status_forcelist=[429, 511], respect_retry_after_header=False, connect=0, read=0
        )
        with pytest.raises((urllib3.exceptions.MaxRetryError, urllib3.exceptions.ProtocolError)):
            await asyncio.to_thread(fetch, it, storm)
        assert it.gate.metrics.verdicts.total() == 31  # and the last of them got no answer
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", it.port, local_addr=("127.0.0.9", 0)
        )
        writer.write(GET + b"\r\n")
        assert (await reader.readline()).split()[1] == b"511"
        writer.close()


@pytest.mark.parametrize("name", ["cafe", "hotel"])
def test_7_2_no_person_meets_the_figures_of_the_policies_and_a_storm_does(name: str) -> None:
    """Ten minutes of each, in simulated time."""
    client = Client(parse_address("192.0.2.7"), parse_mac("02:00:00:00:00:07"))
    place, now = Place("www.example.com", 80), 0.0
    policy = policy_file.load(POLICIES / f"{name}.yaml")

    def met(gaps: list[float], *, obeys: bool = False) -> tuple[int, float | None]:
        """How often the client got a 429, and when it was dropped."""
        nonlocal now
        now, refused, dropped = 1000.0, 0, list[float]()
        gate = Gate(
            policy, MemoryStore(), now=lambda: now, drop=lambda *_: dropped.append(now - 1000)
        )
        while now < 1600 and not dropped:
            for gap in gaps:
                now += gap
                verdict = gate.request(client, HttpRequest(), place, None)
                if isinstance(verdict, TooManyRequests):
                    refused += 1
                    now += verdict.retry_after if obeys else 0
        return refused, dropped[0] if dropped else None

    reading = [0.02] * 60 + [15.0]  # pages with sixty parts, one after the other
    assert met(reading) == (0, None)
    obedient, never = met([0.002], obeys=True)
    assert obedient > 0
    assert never is None
    stubborn, at = met([0.002])
    assert stubborn > 0
    assert at is not None
    assert at < 30
