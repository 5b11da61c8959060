"""An OCSP response is believed only where RFC 6960 has it so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.ocsp import OCSPCertStatus
from hypothesis import given
from hypothesis import strategies as st

from capport.web.ocsp import (
    OcspError,
    Question,
    RevokedError,
    believed,
    demands_staple,
    question,
)
from login.authority import (
    DAY,
    Issued,
    Says,
    Signer,
    a_delegate,
    an_authority,
    issued,
    name_of,
    now,
)

URL = "http://ocsp.example.net/"
HOUR = timedelta(hours=1)


def _issued(folder: Path, authority: Signer) -> Issued:
    return issued(folder, authority, URL)


def _believed(made: Issued, authority: Signer, says: Says) -> tuple[float, float]:
    asked = question(made.chain.read_bytes())
    staple = believed(asked, says.about(made.certificate, authority.certificate), now())
    return staple.since - now().timestamp(), staple.until - now().timestamp()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["ec", "rsa", "ed25519"],
)
def test_the_issuers_own_word_is_believed(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    authority = an_authority(key)
    made = _issued(tmp_path, authority)
    since, until = _believed(made, authority, Says(authority))
    assert since == pytest.approx(-3600, abs=60)
    assert until == pytest.approx(3600, abs=60)


def test_a_delegates_word_is_believed(tmp_path: Path) -> None:
    authority = an_authority()
    _believed(_issued(tmp_path, authority), authority, Says(a_delegate(authority)))


def test_the_ids_may_be_hashed_another_way_than_asked(tmp_path: Path) -> None:
    authority = an_authority()
    _believed(_issued(tmp_path, authority), authority, Says(authority, algorithm=hashes.SHA256()))


def test_a_response_without_an_end_holds_for_a_day(tmp_path: Path) -> None:
    authority = an_authority()
    made = _issued(tmp_path, authority)
    _, until = _believed(made, authority, Says(authority, until=None))
    assert until == pytest.approx((DAY - HOUR).total_seconds(), abs=60)


AUTHORITY = an_authority()
STRANGER = an_authority()
_KEY = ec.generate_private_key(ec.SECP256R1())
ASKED = Question(AUTHORITY.issue(_KEY, "login.example.net"), AUTHORITY.certificate, URL)
GOOD = Says(AUTHORITY).about(ASKED.certificate, ASKED.issuer)


@pytest.mark.parametrize(
    ("says", "because"),
    [
        (Says(STRANGER), "not signed"),
        (Says(a_delegate(STRANGER)), "not signed"),
        (Says(a_delegate(AUTHORITY, good=False)), "not signed"),
        (Says(a_delegate(AUTHORITY, until=-HOUR)), "not signed"),
        (Says(a_delegate(AUTHORITY), with_certificates=False), "not signed"),
        (Says(AUTHORITY, other_serial=True), "another certificate"),
        (Says(AUTHORITY, since=-2 * HOUR, until=-HOUR), "was good until"),
        (Says(AUTHORITY, since=HOUR, until=2 * HOUR), "and here it is"),
        (Says(AUTHORITY, OCSPCertStatus.REVOKED), "revoked"),
        (Says(AUTHORITY, OCSPCertStatus.UNKNOWN), "unknown"),
    ],
)
def test_nothing_else_is_believed(tmp_path: Path, says: Says, because: str) -> None:
    made = _issued(tmp_path, AUTHORITY)
    with pytest.raises(OcspError, match=because) as raised:
        _believed(made, AUTHORITY, says)
    assert isinstance(raised.value, RevokedError) is (because in ("revoked", "unknown"))


def test_a_revocation_that_a_stranger_signs_revokes_nothing(tmp_path: Path) -> None:
    made = _issued(tmp_path, AUTHORITY)
    with pytest.raises(OcspError) as raised:
        _believed(made, AUTHORITY, Says(STRANGER, OCSPCertStatus.REVOKED))
    assert not isinstance(raised.value, RevokedError)


def test_another_issuer_of_the_same_name_is_another(tmp_path: Path) -> None:
    made = _issued(tmp_path, AUTHORITY)
    with pytest.raises(OcspError, match="another certificate"):
        _believed(made, STRANGER, Says(STRANGER))


def _dated(key: ec.EllipticCurvePrivateKey, begins: bytes) -> bytes:
    """A response with a certificate that begins then, which no builder would sign."""
    far = datetime(2050, 1, 1, tzinfo=UTC)  # from then on years have four digits (RFC 5280)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of("Example Stranger"))
        .issuer_name(name_of("Example Stranger"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(far)
        .not_valid_after(far + DAY)
    )
    stranger = Signer(key, builder.sign(key, hashes.SHA256()))
    said = Says(stranger).about(ASKED.certificate, ASKED.issuer)
    assert said.count(b"20500101000000Z") == 1
    return said.replace(b"20500101000000Z", begins)


STRANGELY_DATED = [_dated(_KEY, begins) for begins in (b"00000101000000Z", b"00010101000000Z")]


@pytest.mark.parametrize("said", STRANGELY_DATED, ids=["year 0", "year 1"])
def test_a_date_that_is_none_here_is_not_believed(said: bytes) -> None:
    with pytest.raises(OcspError, match="no response"):
        believed(ASKED, said, now())


@pytest.mark.parametrize("year", [1, 9999])
def test_a_response_from_the_end_of_all_dates_is_not_believed(year: int) -> None:
    since = datetime(year, 1 if year == 1 else 12, 1 if year == 1 else 31, tzinfo=UTC) - now()
    said = Says(AUTHORITY, since=since, until=None).about(ASKED.certificate, ASKED.issuer)
    with pytest.raises(OcspError):
        believed(ASKED, said, now())


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_response_or_break_it(sent: bytes) -> None:
    with pytest.raises(OcspError):
        believed(ASKED, sent, now())


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_response_that_was_changed_anywhere_is_not_believed(at: int, by: int) -> None:
    changed = bytearray(GOOD)
    changed[at % len(changed)] ^= by
    try:
        staple = believed(ASKED, bytes(changed), now())
    except OcspError:
        return
    # What is signed is as it was: only around it are there bytes of no meaning to us.
    was, is_ = (ocsp.load_der_ocsp_response(one) for one in (GOOD, staple.response))
    assert was.tbs_response_bytes == is_.tbs_response_bytes


def test_an_error_of_the_responders_is_named() -> None:
    refused = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(OcspError, match="try_later"):
        believed(ASKED, refused.public_bytes(Encoding.DER), now())


@pytest.mark.parametrize(
    ("responder", "whole", "because"),
    [
        (None, True, "names no OCSP responder"),
        ("ldap://ocsp.example.net/", True, "names no OCSP responder"),
        (URL, False, "add the whole chain"),
    ],
)
def test_what_cannot_be_asked_says_why(
    tmp_path: Path, responder: str | None, *, whole: bool, because: str
) -> None:
    made = issued(tmp_path, AUTHORITY, responder, whole=whole)
    with pytest.raises(OcspError, match=because):
        question(made.chain.read_bytes())
    assert not demands_staple(made.chain.read_bytes())


def test_a_certificate_can_demand_a_staple(tmp_path: Path) -> None:
    made = issued(tmp_path, AUTHORITY, None, demands_staple=True)
    assert demands_staple(made.chain.read_bytes())
    assert not demands_staple(b"")


def test_the_question_is_of_the_certificate(tmp_path: Path) -> None:
    made = _issued(tmp_path, AUTHORITY)
    asked = ocsp.load_der_ocsp_request(question(made.chain.read_bytes()).request())
    assert asked.serial_number == made.certificate.serial_number
