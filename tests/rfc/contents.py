"""Fills in the last column of README.md in this folder: which tests show what the RFCs say.

A test says what it shows by a mark with the RFC, the section, and the first column of its row:

    @pytest.mark.rfc(6585, "3", "MUST NOT be stored by a cache")
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
PAGE = HERE / "README.md"

NOT_OURS = ("Asked of ", "Not done")
"""The start of the second column in rows that no test can show; the rest says why."""

type Mark = tuple[int, str, str]

_RFC = re.compile(r"## RFC (\d+): ")
_SECTION = re.compile(r"### ([\dA-Z.]+)\. ")
_ROW = re.compile(r"\| (?!it says |---)(.+?) \| (.+?) \|.*\|")


def marks() -> dict[Mark, list[tuple[str, str]]]:
    """The tests that have each mark: their file, from `tests/` on, and their name."""
    found: dict[Mark, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text()
        if "pytest.mark.rfc(" in text:
            for name, mark in _marked(ast.parse(text)):
                found[mark].append((path.relative_to(TESTS).as_posix(), name))
    return found


def _marked(module: ast.Module) -> Iterator[tuple[str, Mark]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in reversed(node.decorator_list):
                if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.rfc":
                    rfc, section, says = map(ast.literal_eval, each.args)
                    yield node.name, (rfc, section, says)


def rows(page: str) -> Iterator[tuple[str, Mark | None, str]]:
    """Each line of the page; for a row of a table its mark, and what the portal does."""
    rfc, section = 0, ""
    for line in page.splitlines():
        if heading := _RFC.match(line):
            rfc = int(heading[1])
        elif heading := _SECTION.match(line):
            section = heading[1]
        row = _ROW.fullmatch(line)
        yield (line, (rfc, section, row[1]), row[2]) if row else (line, None, "")


def filled_in(page: str) -> str:
    """The page with its last column filled in from the marks."""
    tests = marks()
    lines = [
        f"| {mark[2]} | {does} | {_links(tests.get(mark, []), mark[1])} |" if mark else line
        for line, mark, does in rows(page)
    ]
    return "\n".join(lines) + "\n"


def _links(tests: list[tuple[str, str]], section: str) -> str:
    named = f"test_{section.lower().replace('.', '_')}_"
    return "<br>".join(
        f"[{name.removeprefix(named).removeprefix('test_').replace('_', ' ')}](../{file})"
        for file, name in tests
    )


if __name__ == "__main__":
    PAGE.write_text(filled_in(PAGE.read_text()))
