"""What the tests of enforcement share. A crash that mitmproxy only logs fails a test."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from mitmproxy import certs

from capport.front.conversation import Conversation, HandOver
from conftest import Origin, Portal
from login.certificates import certificate
from proxy.tls import TlsOrigin
from proxy.wire import GARDEN

CRASHES = ("has crashed", "No verdict in RefusalLayer")


@pytest.fixture(autouse=True)
def nothing_crashed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """mitmproxy logs what a layer raises, and leaves the client without an answer."""
    with caplog.at_level(logging.WARNING):
        yield
    crashes = [
        record
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if any(text in record.getMessage() for text in CRASHES)
    ]
    for record in crashes:
        text = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        pytest.fail(f"{record.getMessage()}\n{text}")


@pytest.fixture(params=["the front", "the layers"])
def answerer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two answers an unknown client; `has_answered` checks that it did."""
    by: str = request.param
    if by == "the layers":
        monkeypatch.setattr(Conversation, "receive", lambda _, data=b"": HandOver(data, 0))
    return by


def has_answered(it: Portal, by: str) -> bool:
    """Whether all connections so far went to this one."""
    return (it.flows.handed_over > 0) == (by == "the layers")


@pytest.fixture
async def secure_origin(tmp_path: Path) -> AsyncIterator[Origin]:
    """An origin that speaks HTTP/1.1 inside TLS."""
    store = certs.CertStore.from_store(tmp_path / "origin", "origin", 2048)
    made = store.get_cert(GARDEN, [])
    file = tmp_path / "origin.pem"
    file.write_bytes(
        made.privatekey.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        + made.cert.to_pem()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    async with Origin().serving(context=context) as origin:
        yield origin


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[TlsOrigin]:
    """An origin with TLS on 127.0.0.1."""
    cert, key = certificate(tmp_path, GARDEN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    it = TlsOrigin(context, ssl.PEM_cert_to_DER_cert(cert.read_text()))
    context.sni_callback = lambda _, name, __: it.sni.append(name)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    yield it
    server.close()
