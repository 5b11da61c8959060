"""A certificate's status: what to ask its OCSP responder, and whether to believe the answer.

RFC 6960. Whoever is captive cannot ask by itself before the walled garden holds the responder, so
RFC 8908 section 4.1 has the server do so, and staple what it was told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from capport.policy.certificate import UNREADABLE

SKEW = timedelta(minutes=5)
"""What a responder's clock may be ahead of ours."""

OPEN_END = timedelta(days=1)
"""For how long a response without nextUpdate is believed, as Firefox does (mozilla::pkix)."""

_SCHEMES = ("http://", "https://")
_NOT_SIGNED = (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError)


class OcspError(ValueError):
    """No answer, or none to believe."""


class RevokedError(OcspError):
    """The issuer has revoked the certificate, or does not know it."""


@dataclass(frozen=True, slots=True)
class Question:
    """Whose status is asked, and of whom: `responder` is an http or https URL."""

    certificate: x509.Certificate
    issuer: x509.Certificate
    responder: str

    def request(self) -> bytes:
        """The OCSPRequest, in DER."""
        asked = _about(self, hashes.SHA1()).build()  # noqa: S303  # what each responder reads
        return asked.public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True, slots=True)
class Staple:
    """A response that says good, in DER, and the Unix seconds between which it holds."""

    response: bytes
    since: float
    until: float


def question(chain: bytes) -> Question:
    """What to ask for the first certificate in `chain` (PEM). OcspError where nothing can be."""
    try:
        certificate, *others = x509.load_pem_x509_certificates(chain)
        responder = next(_responders(certificate), None)
    except UNREADABLE as error:
        raise OcspError(str(error)) from error
    if responder is None:
        raise OcspError("it names no OCSP responder")
    issuer = next((one for one in others if _is_issued(certificate, one)), None)
    if issuer is None:
        raise OcspError("its issuer's certificate is not in the file: add the whole chain")
    return Question(certificate, issuer, responder)


def demands_staple(chain: bytes) -> bool:
    """Whether clients are to refuse the certificate without a response (RFC 7633)."""
    try:
        extensions = x509.load_pem_x509_certificate(chain).extensions
        feature = extensions.get_extension_for_class(x509.TLSFeature).value
    except (*UNREADABLE, x509.ExtensionNotFound):
        return False
    return x509.TLSFeatureType.status_request in feature


def believed(asked: Question, response: bytes, now: datetime) -> Staple:
    """The response, if it is the issuer's word that the certificate is good at `now`, aware.

    Raises OcspError; RevokedError where it is the issuer's word that it is not.
    """
    try:
        return _believed(asked, response, now)
    except OcspError:
        raise
    # Dates, too, are read only when they are asked for: one of the year 0 is a ValueError then,
    # and of the year 1, less what clocks may differ by, an OverflowError.
    except (ValueError, OverflowError, UnsupportedAlgorithm) as error:
        raise OcspError(f"no response: {error}") from error


def _believed(asked: Question, response: bytes, now: datetime) -> Staple:
    said = ocsp.load_der_ocsp_response(response)
    if said.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise OcspError(f"the responder says {said.response_status.name.lower()}")
    single = next((one for one in said.responses if _is_about(asked, one)), None)
    if single is None:
        raise OcspError("the response is about another certificate")
    if not any(_is_signed(said, signer) for signer in _signers(asked, said, now)):
        raise OcspError("the response is not signed by the certificate's issuer")
    since = single.this_update_utc
    until = single.next_update_utc or since + OPEN_END
    if now < since - SKEW:
        raise OcspError(f"the response is of {since:%F %T} UTC, and here it is {now:%F %T}")
    if until <= now:
        raise OcspError(f"the response was good until {until:%F %T} UTC")
    if single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise RevokedError(f"the certificate is {single.certificate_status.name.lower()}")
    return Staple(response, since.timestamp(), until.timestamp())


def _responders(certificate: x509.Certificate) -> Iterator[str]:
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    except x509.ExtensionNotFound:
        return
    for described in access.value:
        at = described.access_location
        if described.access_method != AuthorityInformationAccessOID.OCSP:
            continue
        if isinstance(at, x509.UniformResourceIdentifier) and at.value.startswith(_SCHEMES):
            yield at.value


def _is_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except _NOT_SIGNED:
        return False
    return True


def _about(asked: Question, digest: hashes.HashAlgorithm) -> ocsp.OCSPRequestBuilder:
    return ocsp.OCSPRequestBuilder().add_certificate(asked.certificate, asked.issuer, digest)


def _is_about(asked: Question, single: ocsp.OCSPSingleResponse) -> bool:
    mine = _about(asked, single.hash_algorithm).build()
    return (mine.serial_number, mine.issuer_name_hash, mine.issuer_key_hash) == (
        single.serial_number,
        single.issuer_name_hash,
        single.issuer_key_hash,
    )


def _signers(asked: Question, said: ocsp.OCSPResponse, now: datetime) -> Iterator[x509.Certificate]:
    """RFC 6960 section 4.2.2.2: the issuer, and whom it has certified to sign in its place."""
    yield asked.issuer
    for one in said.certificates:
        holds = one.not_valid_before_utc - SKEW <= now <= one.not_valid_after_utc
        if holds and _is_delegate(one) and _is_issued(one, asked.issuer):
            yield one


def _is_delegate(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (*UNREADABLE, x509.ExtensionNotFound):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage


def _is_signed(said: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    try:
        key, digest = signer.public_key(), said.signature_hash_algorithm
        match key, digest:
            case rsa.RSAPublicKey(), hashes.HashAlgorithm():
                key.verify(said.signature, said.tbs_response_bytes, padding.PKCS1v15(), digest)
            case ec.EllipticCurvePublicKey(), hashes.HashAlgorithm():
                key.verify(said.signature, said.tbs_response_bytes, ec.ECDSA(digest))
            case ((ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey()), None):
                key.verify(said.signature, said.tbs_response_bytes)
            case _:
                return False
    except _NOT_SIGNED:
        return False
    return True
