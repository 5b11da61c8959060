"""The certificate authority of the origin that stands beside a portal in tests."""

import ssl
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from mitmproxy import certs


class Authority:
    """Makes a certificate for each name that a client asks for. `ca_file` is what to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = certs.CertStore.from_store(folder, "origin", 2048)
        self.ca_file = folder / "origin-ca-cert.pem"
        self.context_for = lru_cache(256)(self._make_context)
        """A server's context, with a certificate for a name."""

    def choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """A context's `sni_callback`: shows the certificate for the name that the client names."""
        if name:
            connection.context = self.context_for(name)

    def _make_context(self, name: str) -> ssl.SSLContext:
        file = self._folder / "origin.pem"
        file.write_bytes(self._store.get_cert(name, [_general(name)]).cert.to_pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, self._folder / "origin-ca.pem")  # all have the CA's own key
        return context


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
