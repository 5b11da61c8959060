"""The login server's certificate: whether it is usable, and where a captive client checks it."""

from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from capport.core.explanation import parse_url
from capport.core.place import Host, Place

UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What cryptography raises when a certificate or its extensions cannot be read."""


class Chain:
    """The certificates of a PEM file: the login server's own first, then those of its issuers.

    Raises ValueError if they cannot be read; the message follows the file's name.
    """

    def __init__(self, pem: bytes) -> None:
        try:
            self._all = x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            begins = "the file must contain -----BEGIN CERTIFICATE-----"
            raise ValueError(f"is not a PEM certificate: {begins}") from error
        try:
            self._extensions = [list(one.extensions) for one in self._all]
        except UNREADABLE as error:
            raise ValueError(f"has extensions that cannot be read: {error}") from error

    def key_error(self, key: bytes) -> str | None:
        """Why `key` is not the private key of the first certificate; None if it is."""
        try:
            own = load_pem_private_key(key, None).public_key() == self._all[0].public_key()
        except TypeError:
            return "has a passphrase, which nobody can type at the start: remove it"
        except (UnsupportedAlgorithm, ValueError):
            return "is not a PEM private key: the file must contain -----BEGIN PRIVATE KEY-----"
        return None if own else "is the key of another certificate"

    def doubts(self, now: datetime, host: Host | None) -> Iterator[str]:
        """Each reason why browsers reject the first certificate at `now`.

        `host` is the one that browsers ask for; with None, names are not compared.
        """
        ends, begins = self._all[0].not_valid_after_utc, self._all[0].not_valid_before_utc
        if now > ends:
            yield f"expired on {ends:%Y-%m-%d %H:%M} UTC: renew it"
        elif now < begins:
            yield f"is valid only from {begins:%Y-%m-%d %H:%M} UTC on: check this machine's clock"
        names = self.names
        if host is not None and not any(holds(name, host) for name in names):
            held = ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
            yield f"is for {held or 'no name'} and not for {host}, the host of login_url"

    @property
    def names(self) -> tuple[Host, ...]:
        """The names and addresses that the first certificate is for.

        They come from its subjectAltName, because browsers use nothing else (RFC 9525 section 6.3).
        """
        found: list[Host] = []
        for extension in self._extensions[0]:
            if isinstance(names := extension.value, x509.SubjectAlternativeName):
                addresses = names.get_values_for_type(x509.IPAddress)
                found += (name.lower() for name in names.get_values_for_type(x509.DNSName))
                found += (it for it in addresses if isinstance(it, IPv4Address | IPv6Address))
        return tuple(found)

    def places_to_check(self) -> tuple[Place, ...]:
        """The OCSP responders, CRLs and issuers' certificates that the certificates name.

        A client of the Captive Portal API is captive, and still has to check the API's certificate.
        So RFC 8908 section 4.1 wants these places reachable: the issuers' certificates (AIA) MUST
        be, the others SHOULD.
        """
        urls = [url for some in self._extensions for it in some for url in _urls(it.value)]
        return tuple(dict.fromkeys(place for url in urls if (place := _place(url))))


def holds(name: Host, host: Host) -> bool:
    """Whether `name`, as a certificate has it, is `host` or a wildcard that covers it."""
    if isinstance(name, str) and isinstance(host, str) and name.startswith("*."):
        label, _, rest = host.partition(".")
        return bool(label) and rest == name[2:]  # a * covers one label (RFC 9525 section 6.3)
    return name == host


def _urls(extension: x509.ExtensionType) -> Iterator[str]:
    match extension:
        case x509.AuthorityInformationAccess() as access:
            yield from (_url(described.access_location) for described in access)
        case x509.CRLDistributionPoints() as points:
            for point in points:
                yield from map(_url, point.full_name or ())


def _url(name: x509.GeneralName) -> str:
    return name.value if isinstance(name, x509.UniformResourceIdentifier) else ""


def _place(url: str) -> Place | None:
    try:
        return parse_url(url).place
    except ValueError:
        return None  # a host that is not valid cannot be reached, so it needs no entry
