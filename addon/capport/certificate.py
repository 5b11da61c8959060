"""The login server's certificate: whether it can be used, and where a captive client checks it."""

from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from capport.core.place import Host, Place, parse_host


def certificate_error(pem: bytes) -> str | None:
    """Why `pem` is no certificate in PEM, or None."""
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError:
        return "is no certificate in PEM: it would begin with -----BEGIN CERTIFICATE-----"
    return None


def key_error(key: bytes, pem: bytes) -> str | None:
    """Why `key` is not the private key of the first certificate in `pem`, or None.

    Raises ValueError where `pem` has none.
    """
    certificate = x509.load_pem_x509_certificates(pem)[0]
    try:
        own = load_pem_private_key(key, None).public_key() == certificate.public_key()
    except TypeError:
        return "has a passphrase, which nobody is there to type: remove it"
    except (UnsupportedAlgorithm, ValueError):
        return "is no private key in PEM: it would begin with -----BEGIN PRIVATE KEY-----"
    return None if own else "is the key of another certificate"


def doubts(pem: bytes, now: datetime, host: Host | None) -> Iterator[str]:
    """What a browser will say of the first certificate in `pem` at `now`, where it asks for `host`.

    None asks for nothing. Raises ValueError where there is no certificate.
    """
    certificate = x509.load_pem_x509_certificates(pem)[0]
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > ends:
        yield f"expired on {ends:%Y-%m-%d %H:%M} UTC: renew it"
    elif now < begins:
        yield f"holds only from {begins:%Y-%m-%d %H:%M} UTC on: see whether the clock is right"
    names = _names(certificate)
    if host is not None and not any(_holds(name, host) for name in names):
        held = ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
        yield f"is for {held or 'no name'} and not for {host}, where login_url leads"


def _names(certificate: x509.Certificate) -> list[Host]:
    """Its subject alternative names; browsers look at no other (RFC 9525 section 6.3)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    addresses = names.get_values_for_type(x509.IPAddress)
    of_hosts = [it for it in addresses if isinstance(it, IPv4Address | IPv6Address)]
    return [*(name.lower() for name in names.get_values_for_type(x509.DNSName)), *of_hosts]


def _holds(name: Host, host: Host) -> bool:
    if isinstance(name, str) and isinstance(host, str) and name.startswith("*."):
        label, _, rest = host.partition(".")
        return bool(label) and rest == name[2:]  # a star is one label (RFC 9525 section 6.3)
    return name == host


def places_to_check(pem: bytes) -> tuple[Place, ...]:
    """Where the certificates in `pem` have their OCSP responders, CRLs and issuers' certificates.

    RFC 8908 section 4.1: whoever uses the API is captive, and must reach those all the same; the
    issuers' (AIA) MUST be, the others SHOULD. Raises ValueError where there is no certificate.
    """
    certificates = x509.load_pem_x509_certificates(pem)
    urls = [url for certificate in certificates for url in _urls(certificate)]
    return tuple(dict.fromkeys(place for url in urls if (place := _place(url))))


def _urls(certificate: x509.Certificate) -> Iterator[str]:
    for extension in certificate.extensions:
        match extension.value:
            case x509.AuthorityInformationAccess() as access:
                yield from (_url(described.access_location) for described in access)
            case x509.CRLDistributionPoints() as points:
                for point in points:
                    yield from map(_url, point.full_name or ())


def _url(name: x509.GeneralName) -> str:
    return name.value if isinstance(name, x509.UniformResourceIdentifier) else ""


def _place(url: str) -> Place | None:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None or not parts.hostname:
        return None
    try:
        return Place(parse_host(parts.hostname), parts.port or default)
    except ValueError:
        return None  # a name that nothing can be resolved to is nothing to let through
