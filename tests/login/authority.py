"""A certificate authority of the tests' own, and its OCSP responder on loopback."""

import asyncio
import datetime
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from login.house import until

DAY = datetime.timedelta(days=1)
type Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Signer:
    """A key, and the certificate that says whose it is."""

    key: Key
    certificate: x509.Certificate

    def issue(
        self, key: Key, name: str, *extensions: x509.ExtensionType, until: datetime.timedelta = DAY
    ) -> x509.Certificate:
        return _signed(self.key, self.certificate.subject, key, name, extensions, until)


def _signed(
    by: Key,
    issuer: x509.Name,
    key: Key,
    name: str,
    extensions: tuple[x509.ExtensionType, ...],
    until: datetime.timedelta,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - 3 * DAY)
        .not_valid_after(now() + until)
    )
    for one in extensions:
        builder = builder.add_extension(one, critical=isinstance(one, x509.BasicConstraints))
    return builder.sign(by, _digest(by))


def _digest(key: Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def an_authority(key: Key | None = None) -> Signer:
    """A root."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = "Example Authority"
    constraints = (x509.BasicConstraints(ca=True, path_length=None),)
    return Signer(key, _signed(key, name_of(name), key, name, constraints, DAY))


def a_delegate(authority: Signer, *, until: datetime.timedelta = DAY, good: bool = True) -> Signer:
    """Whom the authority has certified to sign responses; to do something else, if not `good`."""
    key = ec.generate_private_key(ec.SECP256R1())
    use = ExtendedKeyUsageOID.OCSP_SIGNING if good else ExtendedKeyUsageOID.SERVER_AUTH
    return Signer(
        key, authority.issue(key, "Example Responder", x509.ExtendedKeyUsage([use]), until=until)
    )


@dataclass
class Issued:
    """A server's certificate, in files as an operator would have them."""

    certificate: x509.Certificate
    chain: Path
    key: Path


def issued(
    folder: Path,
    authority: Signer,
    responder: str | None,
    *,
    demands_staple: bool = False,
    whole: bool = True,
) -> Issued:
    """A certificate for login.example.net and 127.0.0.1, with its issuer's behind it if `whole`."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("login.example.net"), x509.DNSName("localhost")]
    extensions: list[x509.ExtensionType] = [x509.SubjectAlternativeName(names)]
    if responder is not None:
        at = x509.UniformResourceIdentifier(responder)
        access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, at)
        extensions.append(x509.AuthorityInformationAccess([access]))
    if demands_staple:
        extensions.append(x509.TLSFeature([x509.TLSFeatureType.status_request]))
    certificate = authority.issue(key, "login.example.net", *extensions)
    chain = [certificate, authority.certificate] if whole else [certificate]
    made = Issued(certificate, folder / "cert.pem", folder / "key.pem")
    made.chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    made.key.write_bytes(
        key.private_bytes(
            Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


@dataclass
class Says:
    """What a responder answers. Times are counted from now."""

    signer: Signer
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD
    since: datetime.timedelta = datetime.timedelta(hours=-1)
    until: datetime.timedelta | None = datetime.timedelta(hours=1)
    with_certificates: bool = True
    other_serial: bool = False
    algorithm: hashes.HashAlgorithm = field(default_factory=hashes.SHA1)

    def about(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
        """The OCSPResponse, in DER."""
        if self.other_serial:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = Signer(key, issuer).issue(key, "other.example.net")
        revoked = self.status is ocsp.OCSPCertStatus.REVOKED
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate,
                issuer,
                self.algorithm,
                self.status,
                now() + self.since,
                None if self.until is None else now() + self.until,
                now() - DAY if revoked else None,
                x509.ReasonFlags.key_compromise if revoked else None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, self.signer.certificate)
        )
        if self.with_certificates:
            builder = builder.certificates([self.signer.certificate])
        signed = builder.sign(self.signer.key, _digest(self.signer.key))
        return signed.public_bytes(Encoding.DER)


@dataclass
class Responder:
    """An OCSP responder that listens. `answer`: what it says; bytes: just those; None: nothing."""

    url: str
    answer: Says | bytes | None
    status: int = 200
    asked: list[bytes] = field(default_factory=list)
    certificate: x509.Certificate | None = None
    issuer: x509.Certificate | None = None

    def says(self) -> bytes:
        if isinstance(self.answer, bytes) or self.answer is None:
            return self.answer or b""
        assert self.certificate is not None
        assert self.issuer is not None
        return self.answer.about(self.certificate, self.issuer)


@contextmanager
def responder(answer: Says | bytes | None) -> Iterator[Responder]:
    """A responder on loopback, for as long as the block."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            one.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            if one.answer is None:
                self.close_connection = True
                return
            said = one.says()
            self.send_response(one.status)
            self.send_header("Content-Type", "application/ocsp-response")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    one = Responder(f"http://127.0.0.1:{server.server_address[1]}/", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield one
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def s_client(port: int) -> str:
    """What openssl has to say of a server on loopback, and of its certificate's status."""
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-status", "-no_ign_eof"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    ).stdout


async def until_stapled(port: int) -> str:
    async def stapled() -> str:
        said = await asyncio.to_thread(s_client, port)
        return said if "OCSP Response Status: successful" in said else ""

    return await until(stapled, "a stapled response")
