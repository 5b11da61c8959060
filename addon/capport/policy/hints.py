"""Says what to write instead of a value that is spelt as in other portals, firewalls, spreadsheets.

Each function returns the rest of the error message, after the value, or None if it has no advice.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range

from capport.core.client import parse_mac

_MOST = 6  # networks or places that an error writes out
_PROTOCOL, _PLACE = r"(tcp|udp|icmp|ip|any)", r"([\w.*:\[\]-]+?)"
_WITH_PROTOCOL = re.compile(
    rf"{_PROTOCOL}(?::?/+|:| +){_PLACE}/?|{_PLACE}(?:/|:| +){_PROTOCOL}", re.I
)
_DASH = "[-\N{EN DASH}]"
_BELOW = r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)+(?::[0-9]+)?)"  # a name of several labels
_HEADINGS = {"mac", "address", "ip", "name", "hostname", "client", "device", "sep"}
_SERVICES = {"http": 80, "www": 80, "https": 443, "domain": 53, "ntp": 123}


def of_network(text: str) -> str | None:
    """For a network: ranges, wildcards, netmasks, several in one, names, MAC addresses."""
    return _first(text, _wildcard, _netmask, _range, _several, _mac, _name)


def of_place(text: str) -> str | None:
    """For an entry of the walled garden."""
    kinds = (_client, _wildcard, _netmask, _protocol, _ports, _names_below, _several)
    return unlike_a_name(text) or _first(text, *kinds)


def unlike_a_name(text: str) -> str | None:
    """For a valid host name that is surely not meant as one: `10.0.0.1-9`, `any`."""
    return _first(text, _range, _everything)


def of_mac(text: str) -> str | None:
    """For a MAC address: several in one, a part of one, or one with an address."""
    return _first(text, _several, _part_of_a_mac)


def of_subject(text: str) -> str | None:
    """For the client on a line of a clients file."""
    return _first(text, _wildcard, _netmask, _range, _part_of_a_mac, _name)


def of_listen(text: str) -> str | None:
    """For an address and a port to listen on: a port alone, a URL, or several in one."""
    if match := re.fullmatch(r"(?:\*?:)?([0-9]{1,5})", text):
        every = f"0.0.0.0:{match[1]} for every IPv4 address, [::]:{match[1]} for every IPv6 one"
        return f"has no address: write {every}"
    if match := re.fullmatch(r"https?://([\w.:\[\]-]+)/?", text, re.I):
        return f"is a URL: write {match[1]}"
    return _first(text, _several)


def of_login_url(text: str) -> str | None:
    """For a login URL: one without its scheme."""
    match = re.fullmatch(r"(?://)?(\[[0-9a-f:.]+\]|[\w.-]+)((?::[0-9]+)?(?:/[!-~]*)?)", text, re.I)
    if match is None:
        return None
    scheme = "https" if re.search(r"[^0-9.]", match[1]) and match[1][0] != "[" else "http"
    return f"has no scheme: write {scheme}://{match[1]}{match[2] or '/'}"


def of_client_line(line: str, is_client: Callable[[str], bool], *, first: bool) -> str | None:
    """For a line of a clients file; `first` if no line before it has a client."""
    words = re.findall("[a-z]+", line.lower())
    if first and not re.search(r"[0-9]", line) and _HEADINGS & {*words}:
        return "is a heading: remove it, or write # before it"
    if line.lstrip().startswith(("//", ";", "--")):
        return "is not a comment here: write # before it"
    if _first(line.strip(), _wildcard, _netmask, _range):
        return None  # the error message says it already
    columns = [column.strip('"') for column in re.split(r"[,;\s=]+", line)]
    clients = [*filter(is_client, columns)]
    if not clients:
        return None
    name = " ".join(c for c in columns if c not in clients and re.search(r"\w", c))
    name = name if name.isprintable() else ""
    return f"is not a client, then a comma and its name: write {clients[0]},{name or '…'}"


def is_mac(text: str) -> bool:
    """Whether `text` is a MAC address, in any notation."""
    try:
        parse_mac(text)
    except ValueError:
        return False
    return True


def _first(text: str, *kinds: Callable[[str], str | None]) -> str | None:
    if len(text) > 200:
        return None
    return next((hint for kind in kinds if (hint := kind(text))), None)


def _name(text: str) -> str | None:
    if not re.fullmatch(r"(?:[a-z0-9_-]+\.)+[a-z][a-z0-9-]+", text, re.I):
        return None
    return "is a name: write the client's address or its MAC address"


def _mac(text: str) -> str | None:
    return f"is a MAC address: write mac: {text}" if is_mac(text) else None


def _client(text: str) -> str | None:
    if not is_mac(text):
        return None
    return "is a MAC address, but the garden holds places: add the device under clients"


def _part_of_a_mac(text: str) -> str | None:
    mac, at, address = text.partition("@")
    if at and is_mac(mac) and re.fullmatch(r"[0-9a-f:.]+", address, re.I):
        return f"is a MAC and an address: write one of them, mac: {mac} or address: {address}"
    if re.fullmatch(r"([0-9a-f]{2}[:-]){2,5}([0-9a-fx]{0,2}|\*)", text, re.I) or (
        is_mac(text.partition("/")[0])
    ):
        return "is only a part of a MAC address: write a whole one, such as 02:00:00:00:00:07"
    return None


def _range(text: str) -> str | None:
    """`10.0.0.1-10.0.0.9`, `10.0.0.1-9` or `10.0.0.1-9:8080`."""
    if with_port := re.fullmatch(rf"([0-9.]+) *{_DASH} *[0-9.]+(:[0-9]+)", text):
        each = f"{with_port[1]}{with_port[2]}"
        return f"is a range, which takes no port: write each address, such as {each}"
    match = re.fullmatch(rf"([0-9a-f.:]+) *{_DASH} *([0-9a-f.:]+)", text, re.I)
    if match is None:
        return None
    first, last = match.groups()
    if last.isdigit():
        last = f"{first.rpartition('.')[0]}.{last}"
    try:
        ends = ip_address(first), ip_address(last)
        if int(ends[1]) < int(ends[0]):
            return "is a range that ends before it begins"
        networks = [*summarize_address_range(*ends)]
    except (ValueError, TypeError):  # not addresses, or of two families
        return None
    if len(networks) > _MOST:
        return f"is a range: write networks, such as {_in_short(networks[0])}"
    return f"is a range: write {_all_of([*map(_in_short, networks)])}"


def _wildcard(text: str) -> str | None:
    """`10.0.0.*`, `10.0.0.x`, `10.0.0.` or `10.0.0`."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})((?:\.[*x])+|\.|)", text, re.I)
    if match is None or not (match[2] or text.count(".") == 2):
        return None
    parts = match[1].split(".")
    try:
        network = ip_network(".".join([*parts, "0", "0", "0"][:4]) + f"/{8 * len(parts)}")
    except ValueError:
        return None
    return f"is neither an address nor a network: write {network}, if you mean that"


def _netmask(text: str) -> str | None:
    """`10.0.0.0/255.255.255.0`, or with a space between."""
    match = re.fullmatch(r"([0-9.]+)(?:/| +|:)([0-9]+\.[0-9.]+)", text)
    try:
        network = match and IPv4Network(match.groups(), strict=False)
    except ValueError:
        return None
    return f"has a netmask: write {network}" if network else None


def _several(text: str) -> str | None:
    parts = [part for part in re.split(r"[\s,;|]+", text) if part]
    if len(parts) < 2:
        return None
    one = len(parts) == 2 and " " in text.strip() and parts[1].isdigit()
    if one and (place := f"{parts[0]}:{parts[1]}").isprintable():
        return f"has a space in it: write {place}"
    return f"is {len(parts)} values in one: write an item for each"


def _protocol(text: str) -> str | None:
    """`tcp/example.org`, `tcp:192.0.2.9:80`, `udp://192.0.2.9:53`, `192.0.2.9:53/udp`."""
    match = _WITH_PROTOCOL.fullmatch(text)
    if match is None:
        return None
    protocol, place = (match[1] or match[4]).lower(), match[2] or match[3]
    if protocol == "icmp" or (protocol == "udp" and not place.endswith(":123")):
        return f"is for {protocol.upper()}, but the garden is for TCP, and for NTP on UDP port 123"
    return f"has a protocol, which the garden does not take: write {place}"


def _ports(text: str) -> str | None:
    """`example.org:80,443`, `example.org:8000-8080`, `example.org:https`, `example.org:*`."""
    match = re.fullmatch(
        rf"([\w.*-]+|\[[0-9a-f:.]+\]):([0-9]+(?: *(?:,|{_DASH}) *[0-9]+)+|\*|[a-z]+)", text
    )
    if match is None:
        return None
    host, ports = match.groups()
    if ports in _SERVICES:
        return f"has a service in place of the port: write {host}:{_SERVICES[ports]}"
    if ports.isalpha():
        return None
    numbers = re.findall("[0-9]+", ports)
    if numbers and not re.search(_DASH, ports):
        return f"has several ports: write {_all_of([f'{host}:{port}' for port in numbers])}"
    return f"has several ports: write an item for each, such as {host}:{(*numbers, 8080)[0]}"


def _everything(text: str) -> str | None:
    if text.lower() not in {"*", "any", "all", "."}:
        return None
    return "is everything: write only the places that unknown clients may reach"


def _names_below(text: str) -> str | None:
    """`.example.org`, `*example.org`, `/example.org/`, and regular expressions."""
    if re.search(r"[\\^$()+?]", text):
        return 'is an expression: write names, or "*.example.org" for all names below example.org'
    match = re.fullmatch(rf"(?:\.|\*(?!\.)|\*?/){_BELOW}/?", text, re.I)
    if match is None:
        return None
    return f'is not a name: write "*.{match[1]}" for the names below it, and {match[1]} for itself'


def _in_short(network: IPv4Network | IPv6Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


def _all_of(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}, each an item"
