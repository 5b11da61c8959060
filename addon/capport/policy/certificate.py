"""The login server's certificate: whether it can be used, and where a captive client checks it."""

from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from capport.core.http import DEFAULT_PORTS
from capport.core.place import Host, Place, parse_host

UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What reading a certificate and its extensions can raise."""


class Chain:
    """The certificates of a file in PEM, read once: the first is the login server's own.

    Raises ValueError, which says what the file is not.
    """

    def __init__(self, pem: bytes) -> None:
        try:
            self._all = x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            begins = "it would begin with -----BEGIN CERTIFICATE-----"
            raise ValueError(f"is no certificate in PEM: {begins}") from error
        try:
            self._extensions = [list(one.extensions) for one in self._all]
        except UNREADABLE as error:
            raise ValueError(f"has extensions that cannot be read: {error}") from error

    def key_error(self, key: bytes) -> str | None:
        """Why `key` is not the private key of the first, or None."""
        try:
            own = load_pem_private_key(key, None).public_key() == self._all[0].public_key()
        except TypeError:
            return "has a passphrase, which nobody is there to type: remove it"
        except (UnsupportedAlgorithm, ValueError):
            return "is no private key in PEM: it would begin with -----BEGIN PRIVATE KEY-----"
        return None if own else "is the key of another certificate"

    def doubts(self, now: datetime, host: Host | None) -> Iterator[str]:
        """What a browser will say of the first at `now`, where it asks for `host`.

        None asks for nothing.
        """
        ends, begins = self._all[0].not_valid_after_utc, self._all[0].not_valid_before_utc
        if now > ends:
            yield f"expired on {ends:%Y-%m-%d %H:%M} UTC: renew it"
        elif now < begins:
            yield f"holds only from {begins:%Y-%m-%d %H:%M} UTC on: see whether the clock is right"
        names = self.names
        if host is not None and not any(holds(name, host) for name in names):
            held = ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
            yield f"is for {held or 'no name'} and not for {host}, where login_url leads"

    @property
    def names(self) -> tuple[Host, ...]:
        """What the first is for; browsers look at nothing else in it (RFC 9525 section 6.3)."""
        found: list[Host] = []
        for extension in self._extensions[0]:
            if isinstance(names := extension.value, x509.SubjectAlternativeName):
                addresses = names.get_values_for_type(x509.IPAddress)
                found += (name.lower() for name in names.get_values_for_type(x509.DNSName))
                found += (it for it in addresses if isinstance(it, IPv4Address | IPv6Address))
        return tuple(found)

    def places_to_check(self) -> tuple[Place, ...]:
        """Where they have their OCSP responders, CRLs and issuers' certificates.

        RFC 8908 section 4.1: whoever uses the API is captive, and must reach those all the same;
        the issuers' (AIA) MUST be, the others SHOULD.
        """
        urls = [url for some in self._extensions for it in some for url in _urls(it.value)]
        return tuple(dict.fromkeys(place for url in urls if (place := _place(url))))


def holds(name: Host, host: Host) -> bool:
    """Whether `name`, in a certificate, is `host`, or a star for it."""
    if isinstance(name, str) and isinstance(host, str) and name.startswith("*."):
        label, _, rest = host.partition(".")
        return bool(label) and rest == name[2:]  # a star is one label (RFC 9525 section 6.3)
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
        parts = urlsplit(url)
        default = DEFAULT_PORTS.get(parts.scheme)
        if default is None or not parts.hostname:
            return None
        return Place(parse_host(parts.hostname), parts.port or default)
    except ValueError:
        return None  # a name that nothing can be resolved to is nothing to let through
