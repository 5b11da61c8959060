"""Certificates for tests, of a CA that no one else trusts."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID


def certificate(
    folder: Path,
    name: str = "login.example.net",
    *,
    places: bool = False,
    days: int = 1,
    names: bytes | None = None,
) -> tuple[Path, Path]:
    """A self-signed certificate and its key in `folder`, replacing earlier ones.

    It ends in `days` from now; at most 0, it has ended. `names` stands for what the names are in.
    """
    held: x509.ExtensionType = x509.SubjectAlternativeName([x509.DNSName(name)])
    if names is not None:
        held = x509.UnrecognizedExtension(held.oid, names)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1 - min(days, 0)))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(held, critical=False)
    )
    if places:
        url = x509.UniformResourceIdentifier
        access = [
            (AuthorityInformationAccessOID.OCSP, "http://ocsp.example.org"),
            (AuthorityInformationAccessOID.CA_ISSUERS, "http://ca.example.org:8080/ca.der"),
        ]
        described = [x509.AccessDescription(oid, url(to)) for oid, to in access]
        builder = builder.add_extension(x509.AuthorityInformationAccess(described), critical=False)
        point = x509.DistributionPoint([url("http://crl.example.org/a.crl")], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
