"""No regular expression in the code takes more than linear time, whatever the text."""

import ast
import importlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "addon"
SCANS = dict.fromkeys(("split", "sub", "findall", "finditer"), "findall")  # all find the same
METHODS = {"match": "match", "fullmatch": "fullmatch", "search": "search", **SCANS}
SIZE = 8 * 1024
HELD = 0.020 / 16  # seconds: half of what core/cost.py has, for an eighth of its input

FILLINGS = (
    *(" ", "\t", "a", "A", "0", "1", "f", ".", "-", "_", ":", "/", "%", "@", ";", ",", "=", "*"),
    *("\\", '"', "[", "]", "\n", "\r", "\r\n", "\r ", "a:", "1s ", "1 s", "a ", " a", "0a", "%4"),
    *('\\"', "a.", "1.", "//", "0x", "?a", "\xff", "\0"),
)
BEFORE = (
    "",
    '"',
    "http://",
    "1",
    "a",
    "[redacted",
    "0x",
    "/",
    "1;",
    "v1 ",
    ":",
    "a:",
    "\nTransfer-Encoding:",
)
AFTER = ("", "\0", "\n", "!", '"', " \x0b")


@dataclass(frozen=True)
class Expression:
    where: str
    pattern: str | bytes
    flags: int
    methods: frozenset[str]


def expressions(file: Path) -> Iterator[Expression]:
    """Each one that stands in a file as a literal, and what it is asked by."""
    tree = ast.parse(file.read_text())
    asked: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            asked.setdefault(node.value.id, set()).add(node.attr)
    named = {
        id(node.value): target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re"):
            continue
        if node.func.attr not in (*METHODS, "compile"):
            continue
        where = f"{file.relative_to(SOURCE)}:{node.lineno}"
        pattern = evaluated(node.args[0], file)
        given = [*node.args[1:], *(word.value for word in node.keywords)]
        names = re.findall(r"re\.([A-Z]+)", " ".join(map(ast.unparse, given)))
        flags = sum(getattr(re, name) for name in names)
        methods = {node.func.attr}
        if node.func.attr == "compile":
            methods = asked.get(named.get(id(node), ""), set(METHODS)) & set(METHODS)
        tried = frozenset(METHODS[method] for method in methods)
        yield Expression(where, pattern, flags, tried)


def evaluated(pattern: ast.expr, file: Path) -> Any:
    """What the source says, with its module's names in it."""
    name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    code = compile(ast.Expression(pattern), str(file), "eval")
    return eval(code, vars(importlib.import_module(name)) if names_in(pattern) else {})


def names_in(pattern: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) for node in ast.walk(pattern))


FILES = [it for it in sorted(SOURCE.rglob("*.py")) if "import re\n" in it.read_text()]


def test_they_are_found() -> None:
    found = [it for file in FILES for it in expressions(file)]
    assert len(found) > 50
    assert all(it.methods for it in found), [it.where for it in found if not it.methods]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_each_takes_linear_time(file: Path) -> None:
    assert {it.where: found for it in expressions(file) if (found := slow_with(it))} == {}


def slow_with(it: Expression) -> dict[tuple[str, str, str, str], float]:
    """The inputs for which the expression takes too long, by each method."""
    compiled = re.compile(it.pattern, it.flags)
    slow = {}
    for filling in FILLINGS:
        for before in BEFORE:
            for after in AFTER:
                text = (before + filling * (SIZE // len(filling)))[:SIZE] + after
                given = text.encode("latin-1") if isinstance(it.pattern, bytes) else text
                for method in it.methods:
                    ask = getattr(compiled, method)
                    for _ in range(3):  # a machine that is busy is not busy thrice
                        began = time.thread_time()
                        ask(given)
                        took = time.thread_time() - began
                        if took <= HELD:
                            break
                    else:
                        slow[before, filling, after, method] = took
    return slow
