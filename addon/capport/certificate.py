"""What the API's certificate needs of the walled garden: where a captive client checks it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from cryptography import x509

from capport.core.place import Place, parse_host


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
