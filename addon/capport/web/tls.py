"""TLS as the login server speaks it, by pyOpenSSL: Python's own ssl staples no OCSP responses."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

from OpenSSL import SSL
from tornado import iostream

# CPython's own default (Modules/_ssl.c), so that whoever could talk to the ssl module can to us.
_CIPHERS = (
    b"@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
)
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE


def context(certificate: str, key: str, staple: Callable[[], bytes]) -> SSL.Context:
    """For TLS 1.2 and later with the chain in `certificate`. Raises OSError.

    `staple` is asked in each handshake of a client that wants a certificate's status (RFC 6066
    section 8), on the event loop: the OCSP response, or nothing.
    """
    for path in (certificate, key):
        Path(path).open("rb").close()  # OpenSSL does not say which of the two is not there
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(_OPTIONS)
    made.set_cipher_list(_CIPHERS)
    made.set_alpn_select_callback(_only_http_1)
    made.set_ocsp_server_callback(lambda connection, data: staple())
    made.set_passwd_cb(lambda *_: b"")  # or OpenSSL asks at the terminal
    try:
        made.use_certificate_chain_file(certificate)
        made.use_privatekey_file(key)
        made.check_privatekey()
    except SSL.Error as error:
        raise OSError(f"{certificate} with {key}: {_reason(error)}") from error
    return made


def encrypted(plain: iostream.IOStream, by: SSL.Context) -> iostream.SSLIOStream:
    """The stream in TLS over the socket of `plain`, which is of no use from then on.

    `plain` has not been read or written. The handshake is made as the stream is read.
    """
    tcp: socket = plain.socket
    plain.socket = None  # type: ignore[assignment]  # as IOStream.start_tls does
    return iostream.SSLIOStream(
        _Encrypted(tcp, by),
        max_buffer_size=plain.max_buffer_size,
        read_chunk_size=plain.read_chunk_size,
    )


class _Encrypted:
    """OpenSSL's connection, as Tornado uses an SSLSocket: what goes wrong are ssl's exceptions."""

    def __init__(self, plain: socket, by: SSL.Context) -> None:
        self._plain = plain
        self._tls = SSL.Connection(by, plain)
        self._tls.set_accept_state()

    def do_handshake(self) -> None:
        with _as_ssl_says():
            self._tls.do_handshake()

    def recv_into(self, buffer: memoryview, size: int) -> int:
        try:
            with _as_ssl_says():
                return self._tls.recv_into(buffer, size)
        except ssl.SSLZeroReturnError:
            return 0

    def send(self, data: memoryview) -> int:
        with _as_ssl_says():
            return self._tls.send(data)

    def close(self) -> None:
        # RFC 8446 section 6.1: each side says that it ends. Nobody waits for the other's word.
        with suppress(SSL.Error):
            self._tls.shutdown()
        self._plain.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


@contextmanager
def _as_ssl_says() -> Iterator[None]:
    try:
        yield
    except SSL.WantReadError:
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "read again") from None
    except SSL.WantWriteError:
        raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "write again") from None
    except SSL.ZeroReturnError:
        raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "it has ended") from None
    except SSL.SysCallError as error:
        number, what = error.args
        if number <= 0:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, what) from None
        raise OSError(number, what) from None
    except SSL.Error as error:
        raise ssl.SSLError(ssl.SSL_ERROR_SSL, _reason(error)) from None


def _only_http_1(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _reason(error: SSL.Error) -> str:
    """Why, in OpenSSL's words: it keeps a list of library, function and reason."""
    kept = error.args[0] if error.args else []
    reasons = [str(one[-1]) for one in kept if one[-1]] if isinstance(kept, list) else [str(kept)]
    return "; ".join(dict.fromkeys(reasons)) or "OpenSSL does not say why"
