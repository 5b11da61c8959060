"""The certificate authority of the origin that stands beside a portal in tests."""

import ssl
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mitmproxy import certs

_DAY = timedelta(days=1)


class Authority:
    """Makes a certificate for each name that a client asks for. `ca_file` is what to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _of_authority(self._key)
        self.ca_file = folder / "origin-ca.pem"
        self.ca_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self._key_file = folder / "origin-key.pem"
        self._key_file.touch(0o600)
        self._key_file.write_bytes(
            self._key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.context_for = lru_cache(256)(self._make_context)
        """A server's context, with a certificate for a name."""

    def choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """A context's `sni_callback`: shows the certificate for the name that the client names."""
        if name:
            connection.context = self.context_for(name)

    def _make_context(self, name: str) -> ssl.SSLContext:
        shown = certs.dummy_cert(self._key, self._certificate, name, [_general(name)])
        file = self._folder / "origin.pem"
        file.write_bytes(shown.to_pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, self._key_file)
        return context


def _of_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capport test origin CA")])
    now, own = datetime.now(UTC), key.public_key()
    usage = x509.KeyUsage(
        *(False,) * 5, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(own)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
