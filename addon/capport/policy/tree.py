"""Reads a policy's YAML into a tree of words, lists and maps, each with its line and column.

Every scalar stays text. PyYAML would turn some into numbers, dates or booleans: the MAC address
`10:20:30:40:50:59` into a number in base 60, and `no` into false. Anchors, aliases and tags are
refused, because with them a small file can expand to a large one, or make a Python object.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from capport.policy import errors
from capport.policy.errors import WHOLE, Mark, PolicyError, Problem, Problems, shown

MOST_BYTES = 1 << 20
_DEEPEST = 16  # the policy itself needs 4

# libyaml, if PyYAML is built with it: it reads 1 MiB of lists in 0.7 s, the Python parser in 7 s.
Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Characters that YAML 1.1 section 5.1 forbids, and the line breaks that editors do not count.
_NOT_TEXT = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
# In a value, also the characters that an escape such as `"\x1b"` makes, and those that change the
# direction of the text, so that it looks like other text.
_NOT_A_VALUE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


@dataclass(slots=True)
class Word:
    """A scalar, as written; `nothing` is true if the file has no value there."""

    at: Mark
    text: str
    nothing: bool = False


@dataclass(slots=True)
class Items:
    """A list."""

    at: Mark
    items: "list[Node]"


@dataclass(slots=True)
class Map:
    """A map: for each key, its place and its value."""

    at: Mark
    entries: "dict[str, tuple[Mark, Node]]" = field(default_factory=dict)


@dataclass(slots=True)
class RefusedNode:
    """Stands in place of a node that is wrong; its error is recorded already."""

    at: Mark


type Node = Word | Items | Map | RefusedNode


def read_text(path: Path) -> str:
    """The text of a policy file. Raises PolicyError."""
    try:
        data = errors.read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise _unreadable(str(path), WHOLE, errors.reason(error)) from error
    return decode(data, str(path))


def decode(data: bytes, name: str) -> str:
    """`data` decoded from UTF-8. Raises PolicyError, with the place of the byte that is wrong."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise _unreadable(name, Mark(1, 1), "is not UTF-8, but UTF-16 or no text: save it as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        message = "a byte order mark before the text: save it as UTF-8 without one (without BOM)"
        raise _unreadable(name, Mark(1, 1), message)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line = data[: error.start + 1].decode(errors="replace")
        at = _mark_at(before, len(before))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        source = re.split(r"\r\n|\r|\n", line)[-1]
        raise PolicyError([Problem(name, at.line, at.column, message, source)]) from error


def read_tree(problems: Problems) -> Node | None:
    """The tree of the text; None if it cannot be read, which is then among the `problems`."""
    if odd := _NOT_TEXT.search(problems.text):
        what = f"the character U+{ord(odd[0]):04X} cannot be used in a policy: remove it"
        problems.error(_mark_at(problems.text, odd.start()), what)
        return None
    builder, root = _Builder(problems), None
    try:
        for event in builder.events:
            if isinstance(event, yaml.NodeEvent):
                root = builder.node(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                builder.document(event, first=root is None)
    except yaml.MarkedYAMLError as error:
        problems.error(*_explained(error, problems))
        return None
    except _Stop:
        return None
    if root is None or (isinstance(root, Word) and root.nothing):
        problems.error(Mark(1, 1), "is empty: a policy has at least a login_url or a login_server")
        return None
    return root


def unexpected(problems: Problems, node: Node, expected: str) -> None:
    """Records that `node` is not what is `expected`, unless its error is recorded already."""
    match node:
        case RefusedNode():
            return
        case Word(nothing=True):
            found = "nothing"
        case Word():
            found = f"the word {shown(node.text)}"
        case Items():
            found = "a list"
        case Map():
            found = "a map"
    problems.error(node.at, f"{expected}, but this is {found}")


class _Stop(Exception):
    """Ends the reading; the error is recorded already."""


class _Builder:
    """Builds the tree from the events of the YAML parser."""

    def __init__(self, problems: Problems) -> None:
        self.events = _events(problems)
        self._problems, self._error = problems, problems.error

    def node(self, event: yaml.NodeEvent, depth: int = 0) -> Node:
        """The node that begins with `event`, inside of `depth` lists and maps."""
        at = _mark(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            return self._word(event, at)
        if not isinstance(event, yaml.CollectionStartEvent):
            self._refuse(at, f"*{event.anchor}", "a name that starts with * takes quotes")
            return RefusedNode(at)
        if depth == _DEEPEST:  # so no text can exhaust the stack
            self._error(at, f"is nested more than {_DEEPEST} deep, which no policy needs")
            raise _Stop
        self._plain(event, at)
        within = self._within(depth + 1)
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(at, list(within))
        found = Map(at)
        for key in within:
            name, value = self._key(found, key), next(within)
            if name is not None:
                found.entries[name] = (key.at, value)
        return found

    def _within(self, depth: int) -> Iterator[Node]:
        """The nodes of a list, or the keys and values of a map, up to its end."""
        while isinstance(event := next(self.events), yaml.NodeEvent):
            yield self.node(event, depth)

    def document(self, event: yaml.DocumentStartEvent, *, first: bool) -> None:
        """Checks how a document begins."""
        at = _mark(event.start_mark)
        if not first:
            self._error(at, "a second document: a policy is one document, so remove this ---")
            raise _Stop
        if event.version or event.tags:
            self._error(at, "directives (lines that start with %) are not used here: remove them")

    def _word(self, event: yaml.ScalarEvent, at: Mark) -> Node:
        if not self._plain(event, at):
            return RefusedNode(at)
        if odd := _NOT_A_VALUE.search(event.value):
            what = "a line break" if odd[0] == "\n" else f"the character U+{ord(odd[0]):04X}"
            self._error(at, f"{shown(event.value)} contains {what}: remove it")
            return RefusedNode(at)
        # `style` is None for a plain scalar in libyaml, "" in PyYAML's own parser.
        return Word(at, event.value, nothing=not event.value and not event.style)

    def _plain(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, at: Mark) -> bool:
        """Whether `event` has neither anchor nor tag; records an error for each that it has."""
        if event.anchor:
            instead = "write the value out each time; a text that starts with & takes quotes"
            self._refuse(at, f"&{event.anchor}", instead)
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(at, tag, "every value is text; a text that starts with ! takes quotes")
        return not event.anchor and not event.tag

    def _refuse(self, at: Mark, what: str, instead: str) -> None:
        name = {"*": "the alias", "&": "the anchor"}.get(what[0], "the tag")
        self._error(at, f"{name} {shown(what)} is not used here: {instead}")

    def _key(self, parent: Map, node: Node) -> str | None:
        """`node` as a key of `parent`; None, and an error is recorded, if it cannot be a key."""
        if not isinstance(node, Word) or node.nothing:
            unexpected(self._problems, node, "a key is a word")
            return None
        if first := parent.entries.get(node.text):
            twice = f"{shown(node.text)} is here a second time, after line {first[0].line}"
            self._error(node.at, f"{twice}: keep one of them")
            return None
        return node.text


def _events(problems: Problems) -> Iterator[yaml.Event]:
    loader = Loader(problems.text)
    try:
        while (event := loader.get_event()) is not None:
            yield event
    except (ValueError, OverflowError):  # PyYAML's own parser, on "\U99999999"
        at = _mark(loader.get_mark() if isinstance(loader, yaml.SafeLoader) else None)
        problems.error(at, "an escape in \"…\" that is not a character: write '…' around the value")
        raise _Stop from None
    finally:
        loader.dispose()


class _YamlMark(Protocol):
    line: int
    column: int


def _mark(mark: _YamlMark | None) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)


def _mark_at(text: str, index: int) -> Mark:
    lines = re.split(r"\r\n|\r|\n", text[:index])
    return Mark(len(lines), len(lines[-1]) + 1)


def _unreadable(name: str, at: Mark, message: str) -> PolicyError:
    return PolicyError([Problem(name, at.line, at.column, message)])


# libyaml and PyYAML's own parser word their errors differently. Each row: a part of the context or
# the problem in the error of either; whether our error points to where the construct began (True)
# or to where it failed; our message.
_EXPLANATIONS = (
    ("scanning an alias", True, "a name that starts with * takes quotes"),
    ("scanning an anchor", True, "a text that starts with & takes quotes"),
    ("a tag", True, "a text that starts with ! takes quotes"),
    ("directive", True, "lines that start with % are not used here: remove it"),
    ("incompatible YAML", False, "lines that start with % are not used here: remove it"),
    ("find expected ':'", True, "neither `key: value` nor `- item`: is a colon missing?"),
    ("unexpected end of stream", True, "the quotation mark that opens here is never closed"),
    ("document separator", True, "the quotation mark that opens here is never closed"),
    ("escape", False, "a \\ in \"…\" that YAML does not know: write '…' around the value"),
    ("flow sequence", True, "a list as [one, two] has commas, and ends in ]: this one goes wrong"),
    ("flow mapping", True, "a map as {key: value} has commas, and ends in }: this one goes wrong"),
    ("flow node", False, "an item is missing here, or there is a comma too many"),
    (
        "mapping values are not",
        False,
        "a second `: ` in one value, or a wrong indentation: a text with `: ` takes quotes, "
        "and the keys of one map start in one column",
    ),
    ("entries are not allowed", False, "a list starts on a line of its own: - goes to the next"),
    (
        "block scalar",
        False,
        "a text after | or > starts on the next line; as text both take quotes",
    ),
    ("cannot start any token", False, "a text that starts with this character takes quotes"),
    ("node content", False, "a value is missing here, or a bracket is closed that none opened"),
    ("block collection", False, "does not line up: the items of one list start in one column"),
    (
        "block mapping",
        False,
        "does not line up: the keys of one map start in one column, and nothing follows a value",
    ),
    ("document start", False, "nothing follows the end of a policy: is there a bracket too many?"),
)


def _explained(error: yaml.MarkedYAMLError, problems: Problems) -> tuple[Mark, str]:
    """The place of a syntax error, and a message that says what to write instead."""
    at = min(_mark(error.problem_mark or error.context_mark), problems.end)
    began = _mark(error.context_mark) if error.context_mark else at
    for place in (at, began):
        indent = re.match(r"\s*", problems.line(place))
        if indent and "\t" in indent[0]:
            column = indent[0].index("\t") + 1
            return Mark(place.line, column), "a tab in the indentation: YAML takes spaces only"
    if problems.line(at)[at.column - 1 : at.column] == "\t":
        return at, "a tab: YAML takes spaces only"
    if at == problems.end and "flow node" in (error.context or ""):
        return at, "the file ends inside a list or a map: is a ] or } missing?"
    if match := re.search(r"(?<!['\"])\[[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\]:[0-9]+", problems.line(at)):
        return Mark(at.line, match.start() + 1), f'{match[0]} takes quotes: "{match[0]}"'
    said = f"{error.context}; {error.problem}"
    for part, where_it_began, sentence in _EXPLANATIONS:
        if part in said:
            place = began if where_it_began else at
            return place, _token(problems.line(place)[place.column - 1 :]) + sentence
    return at, f"is not YAML: {error.problem}"


def _token(text: str) -> str:
    """The first word of `text` and a colon, to start a message with; empty if there is none."""
    token = re.match(r"\S*?(?=:?(?:\s|$))", text)
    return f"{shown(token[0])}: " if token and re.search(r"\w", token[0]) else ""
