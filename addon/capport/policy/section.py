"""Reads one map of a policy: which keys it may have, their values, and errors for other keys."""

from collections.abc import Callable
from enum import StrEnum

from capport.policy import values
from capport.policy.errors import Mark, Problems, shown
from capport.policy.tree import Items, Map, Node, Word, unexpected

KEYS = {
    "the policy": (
        *("network", "login_url", "refresh", "clients", "walled_garden", "tls", "http"),
        *("sessions", "limits", "probes", "probe_paths", "login_server", "router"),
    ),
    "clients": ("mac", "address", "file", "access", "name", "trusts_ca"),
    "tls": ("unknown", "known", "connect"),
    "http": ("known",),
    "sessions": ("store", "lifetime", "idle", "most"),
    "limits": (
        *("requests", "unknown_requests", "drop_after"),
        *("header_field", "header_section", "require_conditions"),
    ),
    "requests": ("count", "per"),
    "unknown_requests": ("count", "per"),
    "drop_after": ("count", "per"),
    "login_server": ("listen", "certificate", "key", "conditions", "venue_info_url"),
    "router": ("client_interface", "origin_interface"),
}
"""Each map of the policy, and the keys it may have."""


class Section:
    """One map of the policy: returns the value of each key that the caller asks for.

    An error is added to the problems, and the caller gets the default instead of the value.
    """

    def __init__(self, problems: Problems, name: str, node: Map) -> None:
        self.at = node.at
        self._problems = problems
        self._name = name
        self._entries = {key: found for key, found in node.entries.items() if key in KEYS[name]}
        self._meant: set[str] = set()  # keys that are probably meant by misspelt ones
        for key, (at, _) in node.entries.items():
            if key not in KEYS[name]:
                self._meant.update(values.near(key, KEYS[name]))
                self._problems.error(at, _unknown(key, name))

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def lacks(self, key: str) -> bool:
        """Whether `key` is missing; a misspelt key is reported as such, and not as missing."""
        return key not in self._entries and key not in self._meant

    def mark(self, key: str) -> Mark:
        """The place of the value of `key`, or of the map if it has no such key."""
        found = self._entries.get(key)
        return self.at if found is None else found[1].at

    def error(self, key: str, message: str) -> None:
        """Records an error about the value of `key`. Raises TooMany."""
        self._problems.error(self.mark(key), f"{key}: {message}")

    def warn(self, key: str, message: str) -> None:
        """Records a warning about the value of `key`."""
        self._problems.warn(self.mark(key), f"{key}: {message}")

    def take[Value](self, key: str, read: Callable[[str], Value], otherwise: Value) -> Value:
        """The value of `key`, parsed by `read`; `otherwise` if it is missing or wrong."""
        at, node = self._entries.get(key, (self.at, None))
        if isinstance(node, Word) and not node.nothing:
            return self._read(key, read, node, otherwise)
        if isinstance(node, Word):
            self._problems.error(at, f"{key} has no value: give it one, or leave the line out")
        elif node is not None:
            unexpected(self._problems, node, f"{key} takes one value")
        return otherwise

    def word[Words: StrEnum](self, key: str, otherwise: Words) -> Words:
        """The value of `key`: a word of the same enumeration as `otherwise`."""
        return self.take(key, values.word_of(type(otherwise)), otherwise)

    def several[Value](
        self,
        key: str,
        read: Callable[[str], Value],
        what: str,
        example: str,
        *,
        needed: bool = False,
    ) -> list[tuple[Value, Word]]:
        """Each value in the list under `key`, parsed by `read`, and the word that it was read from.

        Error messages say `what` the list holds, and show an `example`. If the list is `needed`, it
        must be there and not be empty, and a single value may stand in place of a list.
        """
        if needed and self.lacks(key):
            self._problems.error(self.at, f"{self._name} needs {key}: {what}, such as {example}")
        _, node = self._entries.get(key, (self.at, None))
        items = [node] if needed and isinstance(node, Word) else self.items(key, example)
        if needed and isinstance(node, Items) and not items:
            self._problems.error(node.at, f"{key} is empty: write {what}, such as {example}")
        found: list[tuple[Value, Word]] = []
        for item in items:
            if isinstance(item, Word) and not item.nothing:
                if (value := self._read(key, read, item, None)) is not None:
                    found.append((value, item))
            else:
                unexpected(self._problems, item, f"{key} takes {what}")
        return found

    def need[Value](self, key: str, read: Callable[[str], Value], what: str) -> Value | None:
        """The value of `key`, which is required; `what` explains it in the error."""
        if self.lacks(key):
            self._problems.error(self.at, f"{self._name} needs {key}: {what}")
        return self.take(key, read, None)

    def section(self, key: str) -> "Section | None":
        """The map under `key`, empty if `key` has no value; None if it is missing or wrong."""
        _, node = self._entries.get(key, (self.at, None))
        if isinstance(node, Word) and node.nothing:
            return Section(self._problems, key, Map(self._entries[key][0]))
        if isinstance(node, Map):
            return Section(self._problems, key, node)
        if node is not None:
            expected = f"{key} takes a map with the keys {', '.join(KEYS[key])}"
            unexpected(self._problems, node, expected)
        return None

    def settings(self, key: str) -> "Section":
        """The map under `key`; an empty one, with all defaults, if it is missing or wrong."""
        return self.section(key) or Section(self._problems, key, Map(self.at))

    def items(self, key: str, example: str) -> list[Node]:
        """The list under `key`; `example`, an item of it, goes into the error message."""
        _, node = self._entries.get(key, (self.at, None))
        if isinstance(node, Items):
            return node.items
        if node is not None and not (isinstance(node, Word) and node.nothing):
            unexpected(self._problems, node, f"{key} takes a list, such as [{example}]")
        return []

    def _read[Value](
        self, key: str, read: Callable[[str], Value], node: Word, otherwise: Value
    ) -> Value:
        try:
            return read(node.text)
        except ValueError as error:
            self._problems.error(node.at, f"{key}: {error}")
            return otherwise


def _unknown(key: str, section: str) -> str:
    """The error for an unknown key: where it belongs, or the key that it probably means."""
    wrong = f"{shown(key)} is not a key of {section}"
    home = next((name for name, keys in KEYS.items() if key in keys), None)
    if home is not None:
        return f"{wrong}: it belongs {'at the top' if home == 'the policy' else f'under {home}'}"
    near = values.did_you_mean(key, KEYS[section])
    return f"{wrong}{near or f': its keys are {", ".join(KEYS[section])}'}"
