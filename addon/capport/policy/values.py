"""Parses the values in a policy file, one function for each kind: text in, a value out.

A wrong value raises ValueError; the message names the value and says what to write instead. The
caller adds the line and the column.
"""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_pton

from capport.core.client import Address, Mac, parse_address, parse_mac
from capport.core.http import DEFAULT_PORTS
from capport.core.place import Host, Place, parse_authority, parse_host
from capport.core.policy import WEB_PORTS, Login, Network
from capport.extras import lacking
from capport.policy import hints
from capport.policy.errors import shown
from capport.stores.redis_url import parse_redis_url

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SYNONYMS = {
    **dict.fromkeys(("allow", "allowed", "accept", "trusted", "trust", "pass", "yes"), "known"),
    **dict.fromkeys(("deny", "denied", "block", "drop", "reject", "no"), "blocked"),
}
_SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_MAPPED = IPv6Network("::ffff:0:0/96")
# RFC 3986 appendix B, for the two schemes that a browser follows from a 511.
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE | re.DOTALL)
# RFC 3986 section 2 without the apostrophe: the URL goes into HTML, JSON and a header field.
_IN_A_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&()*+,;=%]")
# What the kernel (dev_valid_name), nft in quotes and a command line all accept; IFNAMSIZ is 16.
_INTERFACE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,14}")


def wrong(text: str, why: str) -> ValueError:
    """The error for the value `text`, which says why it is wrong."""
    return ValueError(f"{shown(text)} {why}")


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` if one of `known` is close to `text`; else empty."""
    like = near(text, known)
    return f"; did you mean '{like[0]}'?" if like else ""


def near(text: str, known: Iterable[str]) -> list[str]:
    """The one of `known` that is closest to `text`; an empty list if none is close."""
    return get_close_matches(text[:60].lower().replace("-", "_"), list(known), 1, 0.6)


def word_of[Words: StrEnum](words: type[Words]) -> Callable[[str], Words]:
    """A parser that accepts one of `words`."""

    def parse(text: str) -> Words:
        if text in words:
            return words(text)
        if (meant := _SYNONYMS.get(text.lower())) in words:
            raise wrong(text, f"is none of {', '.join(words)}: write {meant}")
        raise wrong(text, f"is none of {', '.join(words)}{did_you_mean(text, words)}")

    return parse


def truth(text: str) -> bool:
    """`true` or `false`."""
    if text in ("true", "false"):
        return text == "true"
    meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
    hint = f": write {meant}" if meant else did_you_mean(text, ("true", "false"))
    raise wrong(text, f"is neither true nor false{hint}")


def duration(least: int, most: int) -> Callable[[str], float]:
    """A parser of `90s`, `30m`, `8h` or `7d`, between two bounds in seconds; it returns seconds."""

    def parse(text: str) -> float:
        seconds = _seconds(text)
        if not least <= seconds <= most:
            bounds = f"{_in_units(least)} to {_in_units(most)}"
            raise wrong(text, f"is out of bounds: {bounds}")
        return float(seconds)

    return parse


def size(least: int, most: int) -> Callable[[str], int]:
    """A parser of `4096`, `16KiB` or `1MiB`, between two bounds in bytes; it returns bytes."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,9})(KiB|MiB|)", text)
        if not match:
            loose = re.fullmatch(r"([0-9]{1,9}) ?([KkMm])i?[Bb]?", text)
            instead = f"{loose[1]}{loose[2].upper()}iB" if loose else "4096, 16KiB or 1MiB"
            raise wrong(text, f"is not a size: write {instead}")
        value = int(match[1]) * _SIZES[match[2]]
        if not least <= value <= most:
            raise wrong(text, f"is out of bounds: {least} to {most} bytes")
        return value

    return parse


def count(least: int, most: int) -> Callable[[str], int]:
    """A parser of a whole number between two bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise wrong(text, f"is not a whole number from {least} to {most}")
        return int(text)

    return parse


def refresh(text: str) -> int | None:
    """A number of seconds from 0 to 86400, or `never`, which is None."""
    if text == "never":
        return None
    if re.fullmatch(r"[0-9]{1,9}s", text):
        raise wrong(text, f"has a unit: write {text[:-1]}, a number of seconds")
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > 86400:
        raise wrong(text, "is neither a number of seconds, 0 to 86400, nor never")
    return int(text)


def for_people(text: str) -> str:
    """A name that people read: not empty, at most 100 characters, on one line."""
    if not text.strip():
        raise ValueError("an empty name: write one, or leave it out")
    _bound(text, 100)
    return text.strip()


def mac(text: str) -> Mac:
    """A MAC address in any common notation."""
    try:
        return parse_mac(text)
    except ValueError:
        pass
    if hint := hints.of_mac(text):
        raise wrong(text, hint)
    try:
        parse_address(text)
    except ValueError:
        raise wrong(text, "is not a MAC address, such as 02:00:00:00:00:07") from None
    raise wrong(text, f"is an address: write address: {text}")


def network(text: str) -> Network:
    """An address or a network, IPv4 or IPv6; an IPv4-mapped IPv6 one becomes IPv4."""
    if "%" in text:
        raise wrong(text, "has a zone, which has no use here: leave out the % and what follows")
    try:
        if not re.fullmatch(r"[^/]*(/[0-9]{1,3})?", text):
            raise ValueError("a netmask")  # 10.0.0.0/255.0.0.0: the hint says what to write
        there = ip_interface(text)
    except ValueError:
        example = "such as 192.0.2.20, 192.0.2.0/24 or 2001:db8::/48"
        hint = hints.of_network(text) or f"is neither an address nor a network, {example}"
        raise wrong(text, hint) from None
    found: Network = there.network
    if there.ip != found.network_address:
        raise ValueError(f"{text} has host bits set: write {found}, or {there.ip} for it alone")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        address = parse_address(str(found.network_address))
        return IPv4Network((int(address), found.prefixlen - 96))
    return found


def subject(text: str) -> Mac | Address | Network:
    """The client on a line of a clients file: a MAC address, an address or a network."""
    if len(text) == 17 and text[2] in ":-":
        try:
            return parse_mac(text)
        except ValueError:
            pass
    # Fast, for a million lines: inet_pton takes 0.3 us, ip_address 2 (IPv4) or 6 (IPv6).
    try:
        return _unmapped(inet_pton(AF_INET6 if ":" in text else AF_INET, text))
    except (OSError, ValueError):
        pass
    if "/" in text or "%" in text:
        return network(text)
    try:
        return parse_mac(text)
    except ValueError:
        hint = hints.of_subject(text) or "is neither an address nor a network nor a MAC address"
        raise wrong(text, hint) from None


def host(text: str) -> Host:
    """A host name, in A-labels, or an address."""
    if text.startswith("*"):
        raise wrong(text, "is a wildcard: write each name")
    if "://" in text:
        raise wrong(text, f"is a URL: write {shown(_host_in(text))}")
    return _host(text)


def garden_entry(text: str) -> tuple[str | Network, frozenset[int]]:
    """A name, an address or a network, and its ports; `*.` and a name is every name below it."""
    hint = hints.unlike_a_name(text)
    try:
        if hint is None:
            return _garden_entry(text)
    except ValueError:
        hint = hints.of_place(text)
        if hint is None:
            raise
    raise wrong(text, hint)


def _garden_entry(text: str) -> tuple[str | Network, frozenset[int]]:
    if "://" in text:
        raise wrong(text, f"is a URL: write {shown(_host_in(text))}")
    if "/" in text:
        return _garden_network(text), WEB_PORTS
    if text.count(":") > 1 and not text.startswith("["):
        return network(text), WEB_PORTS
    star, rest = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if "*" in rest:
        raise ValueError(f"{shown(text)}: a * may only stand at the start, as in *.example.org")
    if re.search(r":[^\]]*$", rest):
        place = _place(rest)
        found, ports = place.host, frozenset({place.port})
    else:
        found, ports = _host(rest), WEB_PORTS
    if isinstance(found, str):
        return star + found, ports
    if star:
        raise ValueError(f"{shown(text)}: a * may stand before a name, not before an address")
    return ip_network(found), ports


def login_url(text: str) -> Login:
    """An http or https URL, safe in HTML and in a header field; its host becomes A-labels."""
    what = shown(text)
    _bound(text, 2000)
    if text.count("{state}") > 1:
        raise ValueError(f"{what}: {{state}} may stand in it only once")
    if odd := next(filter(_not_in_a_url, text.replace("{state}", "")), None):
        instead = "; only {state} may" if odd in "{}" else f": write {_percent(odd)}"
        raise ValueError(f"{what}: {odd!r} cannot stand in a URL{instead}")
    match = _URL.fullmatch(text)
    if not match or not match[2]:
        otherwise = "is not a URL that starts with https:// or http:// and a host"
        raise wrong(text, hints.of_login_url(text) or otherwise)
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4] or ""
    if match[5]:
        raise wrong(text, f"has a fragment, {shown(match[5])}: leave it out")
    if "@" in authority:
        raise wrong(text, "has user information: leave out what stands before the @")
    if re.search(r"%(?![0-9A-Fa-f]{2})", path + query):
        raise wrong(text, "has a % without two hexadecimal digits: for a % itself write %25")
    port = DEFAULT_PORTS[scheme]
    place = _place(authority, port)
    rest = "".join(c if c.isascii() else _percent(c) for c in (path or "/") + query)
    return Login(f"{scheme}://{place.authority(port)}{rest}", place)


def web_page(text: str) -> str:
    """An https URL that devices show to people: at most 1000 characters."""
    _bound(text, 1000)
    if brace := next((c for c in text if c in "{}"), None):
        raise ValueError(f"{shown(text)}: {brace!r} cannot stand in it: write {_percent(brace)}")
    found = login_url(text)
    if not found.url.startswith("https:"):
        raise wrong(text, "is not https, which RFC 8908 section 5 requires")
    return found.url


def probe_path(text: str) -> str:
    """The path of a connectivity check, as in the request: `/generate_204`."""
    if "://" in text:
        raise wrong(text, "is a URL: write its path, such as /generate_204")
    if not text.startswith("/"):
        raise wrong(text, f"is not a path: write {shown('/' + text)}")
    if text == "/":
        raise wrong(text, "is the first page of every site: write the path of a connectivity check")
    if "?" in text or "#" in text:
        raise wrong(text, "has a query or a fragment: leave it out")
    if odd := next(filter(_not_in_a_url, text), None):
        raise ValueError(f"{shown(text)}: {odd!r} cannot stand in a URL: write {_percent(odd)}")
    return text


def listen(text: str) -> Place:
    """`ADDRESS:PORT`, with IPv6 in brackets: an address of the router, not a name."""
    if "%" in text:
        raise wrong(text, "has a zone: write an address without one")
    example = "such as 192.0.2.1:8511 or [2001:db8::1]:8511"
    try:
        place = parse_authority(text, None)
    except ValueError:
        what = hints.of_listen(text) or f"is not an address and a port, {example}"
        raise wrong(text, what) from None
    if isinstance(place.host, str):
        raise wrong(text, f"has a name: write an address and a port, {example}")
    if place.host.version == 6 and place.host.is_link_local:
        raise wrong(text, f"is link-local, and no link can lead there: write another, {example}")
    return place


def store(folder: Path) -> Callable[[str], str]:
    """A parser of the session store's URL or path; a relative path starts at `folder`."""

    def parse(text: str) -> str:
        scheme, separator, rest = text.partition("://")
        if text == ":memory:":
            return text
        if not separator:
            if not text or text.startswith(":"):
                raise wrong(text, "is not a path; did you mean ':memory:'?")
            return str(folder.absolute() / text)
        if scheme == "sqlite":
            # Some programs write four slashes before an absolute path: three, and its own.
            if not re.fullmatch(r"//?[^/?#].*", rest) or rest.endswith("/"):
                raise wrong(text, "is not sqlite:///PATH, such as sqlite:///var/s.db")
            return f"sqlite:///{rest.lstrip('/')}"
        if scheme in ("redis", "rediss"):
            if lacks := lacking("redis"):
                raise wrong(text, lacks)
            return str(parse_redis_url(text))
        would_do = "a path, sqlite:///PATH, redis://HOST:PORT/DB or :memory:"
        raise wrong(text, f"is not a store: write {would_do}")

    return parse


def interface(text: str) -> str:
    """The name of a network interface as Linux allows it: 1 to 15 characters."""
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        rule = "1 to 15 letters, digits, or . _ - @ +"
        raise wrong(text, f"is not the name of an interface: {rule}")
    return text


def path(folder: Path) -> Callable[[str], Path]:
    """A parser of a file's name; a relative one starts at `folder`."""

    def parse(text: str) -> Path:
        if not text:
            raise ValueError("an empty file name: write its name")
        return folder / text

    return parse


def doubt_of(login: Login) -> str | None:
    """Why people may be unable to open a login URL, and what to write instead; or None."""
    host, would_do = login.place.host, "write a name such as login.home.arpa, or an address"
    if not isinstance(host, str):
        if host.is_unspecified or host.is_link_local or host.is_multicast:
            return f"leads to {host}, which no client can reach: write an address of the router"
        return None
    if host.endswith(".local"):
        return f"has a name under .local, for which many devices ask no name server: {would_do}"
    if "." not in host and host != "localhost":
        return f"has no dot in the name {host}, so many browsers search for it: {would_do}"
    if login.url.startswith("http:") and is_public(host):
        return "is http to a public name: browsers that prefer HTTPS do not follow it; use https"
    return None


def is_on_this_machine(place: Place) -> bool:
    """Whether `place` is a loopback address or name, which each client finds on itself."""
    host = place.host
    if isinstance(host, str):
        return host == "localhost" or host.endswith(".localhost")
    return host.is_loopback


def is_public(name: str) -> bool:
    """Whether `name` may be a public DNS name, so that browsers prefer HTTPS for it."""
    own = {"local", "lan", "internal", "home", "intranet", "corp", "private", "test", "localhost"}
    return name.rpartition(".")[2] not in own and not name.endswith(".home.arpa")


def _unmapped(packed: bytes) -> Address:
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


def _seconds(text: str) -> int:
    if match := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return int(match[1]) * _UNITS[match[2]]
    instead = "90s, 30m, 8h or 7d"
    if re.fullmatch(r"[0-9]{1,9}", text):
        instead = f"{text}s, if you mean seconds; the units are s, m, h, d"
    elif parts := re.fullmatch(r"(?:[0-9]{1,6} ?[smhd] ?)+", text.lower()):
        each = re.findall(r"([0-9]{1,6}) ?([smhd])", parts[0])
        instead = _in_units(sum(int(number) * _UNITS[unit] for number, unit in each))
    raise wrong(text, f"is not a duration: write {instead}")


def _in_units(seconds: int) -> str:
    """A duration as one number with a unit."""
    unit = next(u for u in "dhms" if seconds % _UNITS[u] == 0 and (seconds or u == "s"))
    return f"{seconds // _UNITS[unit]}{unit}"


def _bound(text: str, most: int) -> None:
    if len(text) > most:
        raise wrong(text, f"is {len(text)} characters long: at most {most} are allowed")


def _garden_network(text: str) -> Network:
    name = text.partition("/")[0]
    if re.search(r"/[0-9]+:[0-9]+$", text) or text.startswith("["):
        raise ValueError(f"{shown(text)}: a network takes no port; it is for 80 and 443")
    if re.search(r"[g-z]", name, re.IGNORECASE):
        what = "has a path; the garden takes names and ports only"
        raise wrong(text, f"{what}: write {shown(name)}")
    return network(text)


def _host(text: str) -> Host:
    return parse_host(_in_ascii(text))


def _place(text: str, default_port: int | None = None) -> Place:
    name, colon, port = text.rpartition(":")
    if text.isascii() or not colon:
        return parse_authority(_in_ascii(text), default_port)
    return parse_authority(f"{_in_ascii(name)}:{port}", default_port)


def _in_ascii(name: str) -> str:
    """`name` in A-labels (RFC 5890), after the mapping of UTS 46."""
    if name.isascii():
        return name
    if len(name) > 253:
        raise wrong(name, "is too long for a host name")
    # idna judges the joiners, because some scripts need them (RFC 5892 appendix A).
    if odd := next((c for c in name if not c.isprintable() and c not in "\u200c\u200d"), None):
        raise wrong(name, f"contains the character U+{ord(odd):04X}: remove it")
    if why := lacking("idna"):
        raise wrong(name, f"is not ASCII, and {why}")
    import idna

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except UnicodeError as error:
        raise wrong(name, f"is not a host name: {error}") from None


def _host_in(url: str) -> str:
    authority = re.split(r"[/?#]", url.partition("://")[2])[0].rpartition("@")[2]
    return authority or "its host"


def _not_in_a_url(character: str) -> bool:
    """Whether `character` cannot stand in a URL; one that is not ASCII must only be printable."""
    if character.isascii():
        return not _IN_A_URL.match(character)
    return not character.isprintable()


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
