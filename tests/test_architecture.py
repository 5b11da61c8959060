"""Which way the imports point, and what else must be true of the source as it lies.

Nothing here is imported: the files are parsed. HOUSE is the table; addon/README.md shows it.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TypeGuard

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = ("capport", "captive_portal")

# One worker runs all of them, so that each file's imports are looked for once.
pytestmark = pytest.mark.xdist_group("architecture")

MITMPROXY = ("mitmproxy", "mitmproxy_rs")


@dataclass(frozen=True, slots=True)
class Row:
    """What the modules named may import, beyond the standard library and one another."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    so_that: str
    never: tuple[str, ...] = ()  # of the standard library, or of what may_import lets in
    lazily: tuple[str, ...] = ()  # inside a function only

    def holds(self, module: str) -> bool:
        return matches(module, self.modules)


CLOCKS = ("time", "datetime", "sched", "calendar")
FILES = ("os", "io", "pathlib", "shutil", "tempfile", "glob", "mmap", "sqlite3", "importlib")
SOCKETS = ("socket", "ssl", "select", "selectors", "asyncio", "http.client", "urllib.request")
OTHERS = ("logging", "warnings", "random", "secrets", "subprocess", "threading", "ctypes", "sys")

# The first row that holds a module counts.
HOUSE: tuple[Row, ...] = (
    Row(
        ("capport", "capport.core", "capport.core.*"),
        (),
        "a test of it is one line, and it gives the same answer everywhere",
        never=CLOCKS + FILES + SOCKETS + OTHERS,
    ),
    Row(("capport.extras",), (), "everything that needs an extra says so in one way"),
    Row(("capport.terminal",), (), "what a stranger sent is shown in one way"),
    Row(("capport.clock",), ("capport.core.*",), "a clock does not know what it is read for"),
    Row(
        ("capport.log_limits",),
        ("capport.core.*",),
        "what strangers cause is logged in one way",
    ),
    Row(("capport.lasting",), ("capport.log_limits",), "work that must not end goes on in one way"),
    Row(("capport.watchers",), (), "sessions and neighbours are watched in one way"),
    Row(
        ("capport.linux", "capport.linux.*"),
        ("capport.core.*", "capport.log_limits", "capport.watchers"),
        "the kernel's formats stop here",
    ),
    Row(
        ("capport.policy", "capport.policy.*"),
        (
            *("capport.core.*", "capport.extras", "capport.lasting", "capport.terminal"),
            *("capport.linux.file_state", "capport.linux.safe_files", "capport.stores.redis_url"),
            *("yaml", "idna", "cryptography"),
        ),
        "YAML, IDNA and X.509 stop here",
    ),
    Row(
        ("capport.stores.redis", "capport.stores.redis.*"),
        (
            *("capport.core.*", "capport.clock", "capport.lasting", "capport.watchers"),
            *("capport.stores", "capport.stores.*", "redis"),
        ),
        "Redis stops here",
    ),
    Row(
        ("capport.stores", "capport.stores.*"),
        (
            *("capport.core.*", "capport.clock", "capport.extras", "capport.log_limits"),
            *("capport.watchers", "capport.linux.safe_files"),
        ),
        "a store never learns what it is for",
    ),
    Row(
        ("capport.events", "capport.metrics"),
        ("capport.core.*", "capport.clock", "capport.log_limits"),
        "every module with something to report can import them",
    ),
    Row(
        ("capport.session_view",),
        ("capport.core.*", "capport.clock", "capport.terminal"),
        "a session is shown in one way",
    ),
    Row(
        ("capport.session_events",),
        ("capport.core.*", "capport.stores", "capport.events"),
        "the events of sessions are written in one place",
    ),
    Row(("capport.budgets",), ("capport.core.*",), "processes share numbers, and nothing else"),
    Row(
        ("capport.gate",),
        (
            *("capport.core", "capport.core.*", "capport.stores", "capport.linux"),
            *("capport.linux.own_addresses", "capport.budgets"),
            *("capport.events", "capport.metrics", "capport.clock"),
        ),
        "it knows protocols, and can be given fakes",
    ),
    Row(
        ("capport.report", "capport.report.*"),
        ("capport.core.*", "capport.events", "capport.terminal"),
        "a report is made of events, live or saved",
    ),
    Row(
        ("capport.front", "capport.front.*"),
        ("capport.core.*", "capport.gate"),
        "it knows neither mitmproxy nor a socket",
        never=FILES + SOCKETS,
    ),
    Row(
        ("capport.router", "capport.router.*"),
        (
            *("capport.core.*", "capport.clock", "capport.lasting", "capport.stores"),
            *("capport.linux", "capport.linux.*"),
        ),
        "`capport router` runs where mitmproxy does not",
    ),
    Row(
        ("capport.web", "capport.web.*"),
        (
            *("capport.core.*", "capport.clock", "capport.gate", "capport.lasting"),
            *("capport.log_limits", "capport.linux.*", "capport.stores", "capport.stores.*"),
            *("capport.policy.certificate", "tornado", "cryptography"),
        ),
        "what pages and APIs have in common knows neither",
    ),
    Row(
        ("capport.login", "capport.login.*"),
        (
            *("capport.core.*", "capport.web.*", "capport.log_limits", "capport.stores"),
            *("capport.linux.file_state", "capport.linux.safe_files", "tornado"),
            *("argon2", "cryptography", "jwt", "markdown_it"),
        ),
        "the pages and the APIs never learn of each other",
    ),
    Row(
        ("capport.api", "capport.api.*"),
        ("capport.core.*", "capport.web.*", "capport.session_view", "tornado"),
        "the APIs and the pages never learn of each other",
    ),
    Row(
        ("capport.cli", "capport.__main__", "capport.commands", "capport.commands.*"),
        ("capport.*",),
        "`capport grant` starts without mitmproxy",
        never=("capport.proxy.addon", "capport.proxy.processes.appliance"),
        lazily=("capport.*", "mitmproxy"),
    ),
    Row(
        ("capport.testing", "capport.testing.*"),
        ("capport.*", "mitmproxy", "tornado", "cryptography", "pytest"),
        "portals of other kinds exist in tests alone",
        never=("capport.cli", "capport.commands"),
    ),
    Row(
        ("capport.service", "capport.service.*"),
        ("capport.*", "prometheus_client"),
        "the wiring is written once, for a proxy and without one",
        never=("capport.proxy", "capport.commands", "capport.cli"),
    ),
    Row(
        ("capport.proxy", "capport.proxy.*", "captive_portal"),
        ("capport.*", *MITMPROXY, "h11", "h2", "uvloop"),
        "mitmproxy stops here",
        never=("capport.commands", "capport.cli"),
    ),
)

TOOLS = {
    "mypy": "scripts/check",
    "ruff": "scripts/check",
    "pytest-asyncio": "asyncio_mode in pyproject.toml",
    "pytest-timeout": "timeout in pyproject.toml",
    "pytest-xdist": "scripts/test",
}


@dataclass(frozen=True, slots=True)
class Import:
    """An import of `name`, as near as can be told: a module, or a name in one."""

    place: str
    module: str
    name: str
    in_function: bool
    for_types: bool


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def sources(folder: Path) -> dict[str, Path]:
    """The modules of a source root by their names, `__init__` by its package's."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def named(node: ast.AST, module: str, path: Path) -> Iterator[str]:
    """The full names that an import statement asks for; none for any other node."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        up = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(module: str, path: Path) -> tuple[Import, ...]:
    return imports_in(path.read_text(), module, path)


@cache
def imports_in(text: str, module: str, path: Path) -> tuple[Import, ...]:
    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.expr):
            return  # an import is a statement, and no expression holds one
        for name in named(node, module, path):
            line = getattr(node, "lineno", 0)
            yield Import(f"{path.name}:{line}", module, name, in_function, for_types)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for guarded in node.body:
                yield from walk(guarded, in_function, True)
            for otherwise in node.orelse:
                yield from walk(otherwise, in_function, for_types)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function or function, for_types)

    return tuple(walk(ast.parse(text, str(path)), False, False))


def module_of(name: str, modules: dict[str, Path]) -> str:
    """`name` less what is not a module of ours in it: `capport.clock.now` is capport.clock."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def is_allowed(row: Row, found: Import, name: str) -> bool:
    top = name.partition(".")[0]
    mine = top in OURS
    if found.in_function and (matches(name, row.lazily) or top in row.lazily):
        return True
    if within(name, row.never):
        return False
    if row.holds(name) or name == "capport" or top in sys.stdlib_module_names:
        return True  # the package itself holds its version, and nothing else
    return matches(name, row.may_import) if mine else top in row.may_import


def violations(folder: Path) -> list[str]:
    """Each import below `folder` that HOUSE forbids, as `FILE:LINE: ... : the reason`."""
    modules = sources(folder)
    wrong = []
    for module, path in modules.items():
        row = next((row for row in HOUSE if row.holds(module)), None)
        if row is None:
            wrong.append(f"{path.name}: {module} has no row in HOUSE")
            continue
        for found in imports(module, path):
            ours = within(found.name, OURS)
            name = module_of(found.name, modules) if ours else found.name
            if not is_allowed(row, found, name):
                wrong.append(
                    f"{found.place}: {module} may not import {name}, so that {row.so_that}"
                )
    return wrong


def reach(start: str, folder: Path) -> dict[str, str]:
    """All that importing `start` imports, packages on the way too, each with who asked for it."""
    modules = sources(folder)
    asked_by, queue = {start: ""}, [start]
    while queue:
        module = queue.pop()
        path = modules.get(module)
        for found in imports(module, path) if path else ():
            if found.in_function or found.for_types:
                continue
            name = module_of(found.name, modules)
            while name and name not in asked_by:
                asked_by[name] = module
                queue.append(name)
                name = name.rpartition(".")[0]
    return asked_by


def test_imports_point_the_way_that_the_house_says() -> None:
    assert violations(CHECKOUT / "addon") == []


@pytest.mark.parametrize(
    "module",
    [
        *("capport.core.decision", "capport.gate", "capport.cli", "capport.router.nftables"),
        *("capport.service.service", "capport.commands.login"),
    ],
)
def test_what_works_without_mitmproxy_does_not_reach_it_by_a_detour(module: str) -> None:
    reached = reach(module, CHECKOUT / "addon")
    detours = [f"{by} imports {name}" for name, by in reached.items() if within(name, MITMPROXY)]
    assert detours == []


def plant(folder: Path, file: str, source: str) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return folder


@pytest.mark.parametrize(
    ("file", "source", "because"),
    [
        ("core/decision.py", "import time", "decision.py:1: capport.core.decision may not import"),
        ("core/decision.py", "from datetime import datetime", "datetime.datetime"),
        ("core/decision.py", "def f():\n    import logging", "decision.py:2"),
        ("core/decision.py", "import http.client", "the same answer everywhere"),
        ("core/decision.py", "from http import client", "the same answer everywhere"),
        ("core/decision.py", "from capport import gate", "import capport.gate"),
        ("core/decision.py", "from ..gate import Gate", "import capport.gate"),
        ("core/__init__.py", "from .. import gate", "import capport.gate"),
        ("core/decision.py", "import yaml", "the same answer everywhere"),
        ("policy/values.py", "import mitmproxy.http", "YAML, IDNA and X.509 stop here"),
        ("stores/sqlite/store.py", "import redis", "what it is for"),
        ("stores/sqlite/store.py", "from capport.gate import Gate", "what it is for"),
        ("linux/neighbours.py", "import yaml", "the kernel's formats"),
        ("gate.py", "from capport.stores.sqlite.store import SqliteStore", "can be given fakes"),
        ("gate.py", "from mitmproxy import http", "can be given fakes"),
        ("router/nftables.py", "import mitmproxy", "where mitmproxy does not"),
        ("login/forms.py", "from mitmproxy import http", "never learn of each other"),
        ("login/forms.py", "from capport.api import resources", "never learn of each other"),
        ("api/resources.py", "from capport.login import forms", "never learn of each other"),
        ("web/context.py", "from capport.login import forms", "knows neither"),
        ("web/context.py", "from capport.api import resources", "knows neither"),
        ("cli.py", "from capport.proxy import addon", "starts without mitmproxy"),
        ("cli.py", "import mitmproxy", "starts without mitmproxy"),
        ("proxy/addon.py", "import requests", "mitmproxy stops here"),
        ("service/service.py", "from mitmproxy import ctx", "the wiring is written once"),
        ("service/service.py", "from capport.proxy import addon", "the wiring is written once"),
        ("utilities.py", "", "has no row in HOUSE"),
        (
            "core/decision.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mitmproxy import http",
            "decision.py:3",
        ),
    ],
)
def test_a_planted_violation_is_caught(
    file: str, source: str, because: str, tmp_path: Path
) -> None:
    for name in ("gate", "proxy/addon", "stores/sqlite/store", "login/forms", "api/resources"):
        plant(tmp_path, f"capport/{name}.py", "")
    caught = violations(plant(tmp_path, f"capport/{file}", source))
    assert len(caught) == 1
    assert because in caught[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/decision.py", "from http import HTTPStatus\nfrom urllib.parse import urlsplit"),
        ("core/decision.py", "from capport.core.client import Client"),
        ("gate.py", "from capport import clock\nfrom capport.stores import SessionStore"),
        ("stores/redis.py", "import redis.asyncio"),
        ("cli.py", "def run():\n    from capport.proxy import addon\n    import mitmproxy"),
        ("proxy/layers/tls.py", "from mitmproxy import tls\nfrom capport.gate import Gate"),
    ],
)
def test_what_the_table_lets_in_is_let_in(file: str, source: str, tmp_path: Path) -> None:
    for name in ("core/client", "clock", "gate", "proxy/addon", "stores/__init__"):
        plant(tmp_path, f"capport/{name}.py", "")
    assert violations(plant(tmp_path, f"capport/{file}", source)) == []


def test_a_planted_detour_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "capport/cli.py", "from capport.proxy.layers import tls")
    plant(tmp_path, "capport/proxy/layers/tls.py", "from mitmproxy import tls")
    reached = reach("capport.cli", tmp_path)
    assert reached["mitmproxy"] == "capport.proxy.layers.tls"
    plant(tmp_path, "capport/proxy/layers/tls.py", "def f():\n    from mitmproxy import tls")
    assert "mitmproxy" not in reach("capport.cli", tmp_path)
    plant(tmp_path, "capport/proxy/__init__.py", "import mitmproxy")
    assert reach("capport.cli", tmp_path)["mitmproxy"] == "capport.proxy"


def circles(folder: Path) -> list[str]:
    """The modules that import one another, each way round; what is for types alone counts too."""
    modules = sources(folder)
    asks: dict[str, set[str]] = {
        module: {module_of(found.name, modules) for found in imports(module, path)} - {module}
        for module, path in modules.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def walk(way: list[str]) -> None:
        for name in sorted(asks.get(way[-1], ())):
            if name in way:
                found.append(" -> ".join([*way[way.index(name) :], name]))
            elif name not in done:
                walk([*way, name])
        done.add(way[-1])

    for module in modules:
        if module not in done:
            walk([module])
    return found


def test_no_modules_import_one_another() -> None:
    assert circles(CHECKOUT / "addon") == []


@pytest.mark.parametrize(
    "source",
    [
        "from capport.proxy import addon",
        "def f():\n    from capport.proxy.addon import Hooks",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import capport.proxy.addon",
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, source: str) -> None:
    plant(tmp_path, "capport/proxy/addon.py", "from capport.proxy.layers import tls")
    plant(tmp_path, "capport/proxy/layers/tls.py", "from capport.proxy import asked")
    assert circles(plant(tmp_path, "capport/proxy/asked.py", source)) == [
        "capport.proxy.addon -> capport.proxy.layers.tls -> capport.proxy.asked"
        " -> capport.proxy.addon"
    ]


# What mitmproxy documents that an addon may set, by the names that we give to what has it.
DOCUMENTED = {
    *("asked.layer", "client.error", "conn.error", "data.server.error", "server.error"),
    *("data.establish_server_tls_first", "server.address", "headers.fields"),
    *("flow.request", "flow.response", "flow.error", "flow.live", "flow.marked"),
    *("flow.comment", "flow.request.stream", "flow.response.stream"),
}
LIBRARIES = (*MITMPROXY, "h11", "h2")
INTERNALS = "capport.proxy.internals"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """The attributes that the classes in a file define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield inner.name
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    yield inner.target.id
                elif is_set(inner) and ast.unparse(inner.value) == "self":
                    yield inner.attr


def is_set(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)


@cache
def private_in_mitmproxy() -> set[str]:
    """The underscored names of the classes that ours could inherit from."""
    spec = find_spec("mitmproxy")
    assert spec
    assert spec.origin
    files = [*Path(spec.origin).parent.glob("proxy/**/*.py")]
    return {n for file in files for n in defined(ast.parse(file.read_text())) if is_private(n)}


def liberties(module: str, path: Path, own: set[str]) -> Iterator[str]:
    """What a module reads or sets that mitmproxy, h11 or h2 do not promise. `own`: attributes."""
    tree = ast.parse(path.read_text(), str(path))
    asked = [it.name for it in imports(module, path)]
    if not any(within(name, (*LIBRARIES, INTERNALS)) for name in asked):
        return
    for name in asked:
        if within(name, LIBRARIES) and any(map(is_private, name.split("."))):
            yield f"{path.name}: imports {name}"
    heirs = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases)
    inherited = {n for it in heirs for n in defined(it)} & private_in_mitmproxy()
    yield from (f"{path.name}: defines {name}" for name in inherited)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if re.fullmatch(r"(object\.__)?(set|del)attr(__)?", ast.unparse(node.func)):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and (is_private(node.attr) or is_set(node)):
            text, mine = ast.unparse(node), ast.unparse(node.value) in ("self", "cls")
            if not mine and text != "os._exit" and is_private(node.attr):
                yield f"{path.name}:{node.lineno}: reads {text}"
            elif is_set(node) and not mine and node.attr not in own and text not in DOCUMENTED:
                yield f"{path.name}:{node.lineno}: sets {text}"


def all_liberties(folder: Path) -> list[str]:
    modules = sources(folder)
    outside = {name: path for name, path in modules.items() if not within(name, (INTERNALS,))}
    own = {n for path in outside.values() for n in defined(ast.parse(path.read_text()))}
    return [it for name, path in outside.items() for it in liberties(name, path, own)]


def test_mitmproxy_s_internals_are_read_and_replaced_in_one_folder() -> None:
    assert all_liberties(CHECKOUT / "addon") == []


@pytest.mark.parametrize(
    ("source", "because"),
    [
        ("from mitmproxy.proxy.layers.http import _events", "imports mitmproxy.proxy.layers.http."),
        ("from mitmproxy.proxy.layers.http._hooks import HttpRequestHook", "imports mitmproxy"),
        ("import h11._readers", "imports h11._readers"),
        (
            "from mitmproxy import ctx\nctx.options._options['mode'].set(1)",
            "reads ctx.options",
        ),
        ("from mitmproxy import ctx\nctx.master.addons.chain = []", "sets ctx.master.addons.chain"),
        (
            "from mitmproxy.proxy import server\nserver.ConnectionHandler.log = 1",
            "sets server.",
        ),
        ("import h2\ndef f(handler):\n    handler.layer = 1", "sets handler.layer"),
        ("import h2\ndef f(it):\n    setattr(it, 'address', 1)", "a.py:3: setattr(it, "),
        ("import h2\ndef f(it):\n    object.__setattr__(it, 'a', 1)", "a.py:3: object.__setattr__"),
        ("import h2\ndef f(sock):\n    sock.__class__ = int", "sets sock.__class__"),
        (
            "from mitmproxy.proxy.layer import Layer\nclass A(Layer):\n"
            "    def _handle_event(self, event):\n        pass",
            "defines _handle_event",
        ),
    ],
)
def test_a_planted_liberty_is_caught(source: str, because: str, tmp_path: Path) -> None:
    plant(tmp_path, "capport/proxy/internals/b.py", source)
    (caught,) = all_liberties(plant(tmp_path, "capport/proxy/a.py", source))
    assert because in caught


def borrowed_from_tests(folder: Path) -> list[str]:
    """What the modules of a folder import of modules that are tests."""
    return [
        f"{path.name} imports {found.name}"
        for module, path in sources(folder).items()
        for found in imports(module, path)
        if any(part.startswith("test_") for part in found.name.split("."))
    ]


def test_no_test_depends_on_another_tests_module() -> None:
    assert borrowed_from_tests(CHECKOUT / "tests") == []


@pytest.mark.parametrize(
    "source", ["from a.test_b import c", "import a.test_b", "from a import test_b"]
)
def test_what_is_borrowed_from_a_test_is_caught(source: str, tmp_path: Path) -> None:
    plant(tmp_path, "test_a.py", source)
    assert len(borrowed_from_tests(tmp_path)) == 1


# Private names of others that the code has too, as tests write them, and whose they are.
OF_OTHERS = {
    "Handle._run": "asyncio's: a step of its loop, which is measured",
    "h11._readers": "h11's, which verify() looks at",
    "instance._servers": "mitmproxy's, to which one is added that cannot be taken over",
    "one._servers": "mitmproxy's, all of which are taken over",
    "voucher.limits._replace": "a NamedTuple's, which is documented",
}


def underscored(folder: Path) -> set[str]:
    """The private names that the code in a folder defines, uses or mentions."""
    return {name for path in folder.rglob("*.py") for name in underscored_in(path.read_text())}


def underscored_in(text: str) -> set[str]:
    return set(re.findall(r"\b_[^\W_]\w*", text))


def privates_in(node: ast.Attribute | ast.ImportFrom | ast.Call) -> Iterator[tuple[str, str]]:
    """The private names that are read, imported, or given to a function as text, and of what."""
    match node:
        case ast.Attribute(value, name) if is_private(name):
            yield ast.unparse(value), name
        case ast.ImportFrom(module, names):
            yield from ((module or "", it.name) for it in names if is_private(it.name))
        case ast.Call(args=args):
            for it in args:
                if isinstance(it, ast.Constant) and isinstance(it.value, str):
                    of, _, name = it.value.rpartition(".")
                    if is_private(name):
                        yield of or ast.unparse(args[0]), name


def private_uses(folder: Path, code: set[str]) -> Iterator[tuple[str, str]]:
    """What the files of a folder use of the private names in `code`, and where; not their own."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if not code & underscored_in(text):
            continue
        tree = ast.parse(text, str(path))
        theirs = code - set(defined(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.ImportFrom | ast.Call):
                for of, name in privates_in(node):
                    if name in theirs and of not in ("self", "os"):
                        yield f"{of}.{name}", f"{path.name}:{node.lineno}"


def test_no_test_depends_on_private_names_of_the_code() -> None:
    uses = dict(private_uses(CHECKOUT / "tests", underscored(CHECKOUT / "addon")))
    assert {text: place for text, place in uses.items() if text not in OF_OTHERS} == {}
    assert set(OF_OTHERS) - set(uses) == set()


@pytest.mark.parametrize(
    "source",
    [
        "def f(it):\n    return it.way._held",
        "from capport.a import _held",
        "def f(patch, it):\n    patch.setattr(it, '_held', 1)",
        "def f(patch):\n    patch.setattr('capport.a._held', 1)",
    ],
)
def test_a_private_name_in_a_test_is_caught(source: str, tmp_path: Path) -> None:
    code = underscored(plant(tmp_path / "addon", "capport/a.py", "_held = 1"))
    assert len([*private_uses(plant(tmp_path / "tests", "test_a.py", source), code)]) == 1
    its_own = f"class A:\n    def __init__(self):\n        self._held = 1\n{source}"
    assert [*private_uses(plant(tmp_path / "tests", "test_a.py", its_own), code)] == []


def reads_the_outside(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"open", "input", "print", "__import__", "eval", "exec"}
        ):
            yield node.lineno


def test_the_core_calls_nothing_that_reads_or_writes() -> None:
    core = sources(CHECKOUT / "addon" / "capport" / "core")
    assert core
    caught = {
        module: lines
        for module, path in core.items()
        if (lines := list(reads_the_outside(ast.parse(path.read_text()))))
    }
    assert caught == {}
    assert list(reads_the_outside(ast.parse("x = 1\nopen(x)"))) == [2]


def opening(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def is_one_sentence(line: str) -> bool:
    return bool(re.fullmatch(r"\S.*[.!?]", line)) and not re.search(r"[.!?] +[A-Z]", line[:-1])


def test_every_module_opens_with_one_sentence() -> None:
    without = {
        module: opening(path)
        for module, path in sources(CHECKOUT / "addon").items()
        if not is_one_sentence(opening(path))
    }
    assert without == {}


@pytest.mark.parametrize(
    "line", ["", "No full stop", "Two of them. That is one too many.", "A wrapped one, whose end"]
)
def test_what_is_not_one_sentence_is_known(line: str) -> None:
    assert not is_one_sentence(line)


def test_no_module_is_named_for_having_no_subject() -> None:
    vague = {"utils", "util", "helpers", "misc", "common", "tools"}
    named_so = [m for m in sources(CHECKOUT / "addon") if vague & set(m.split("."))]
    assert named_so == []


def test_a_folder_has_about_a_dozen_modules() -> None:
    there = sources(CHECKOUT / "addon" / "capport").values()
    most = {"core": 20, "commands": 20}
    full = Counter(path.parent.name for path in there if path.name != "__init__.py")
    assert {name for name, count in full.items() if count > most.get(name, 15)} == set()


def test_no_two_modules_have_the_same_name() -> None:
    names = Counter(path.name for path in sources(CHECKOUT / "addon").values())
    assert {name for name, count in names.items() if count > 1} == {"__init__.py"}


def test_no_two_public_classes_have_the_same_name() -> None:
    trees = (ast.parse(path.read_text()) for path in sources(CHECKOUT / "addon").values())
    nodes = chain.from_iterable(map(ast.walk, trees))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert names["Portal"] == 1
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def map_of_the_house() -> str:
    return (CHECKOUT / "addon" / "README.md").read_text()


def test_the_map_has_a_line_for_each_module_and_none_for_another() -> None:
    lines = []
    for section in re.split("^### ", map_of_the_house(), flags=re.M)[1:]:
        title = section.partition("\n")[0]
        folder = "" if title == "The package itself" else title
        lines += re.findall(rf"^\| `({folder}[a-z0-9_]+\.py)` \| \S", section, re.M)
    package = CHECKOUT / "addon" / "capport"
    there = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    modules = {name for name in there if not name.endswith("__init__.py")}
    missing = [f"| `{name}` | {opening(there[name])} |" for name in sorted(modules - set(lines))]
    assert "\n".join(missing) == ""
    assert sorted(lines) == sorted(modules)


def test_the_map_names_no_file_that_is_not_there() -> None:
    places = (CHECKOUT / "addon" / "capport", CHECKOUT)
    named = re.findall(r"`([a-z0-9_]+/[a-z0-9_/]+\.[a-z]+)`", map_of_the_house())
    assert len(named) > 15
    assert [name for name in named if not any((at / name).exists() for at in places)] == []


def test_the_map_has_a_heading_for_each_folder() -> None:
    package = CHECKOUT / "addon" / "capport"
    folders = {str(p.parent.relative_to(package)) for p in package.rglob("__init__.py")} - {"."}
    assert set(re.findall(r"^### ([a-z/0-9]+)/$", map_of_the_house(), re.M)) == folders


def shown(row: Row) -> str:
    """A row of HOUSE as a row of the map's table."""

    def names(patterns: tuple[str, ...]) -> str:
        folders = {name.removesuffix(".*") for name in patterns if name.endswith(".*")}
        modules = (name for name in patterns if name not in folders)
        paths = (re.sub(r"^capport\.(?!\*)", "", name).replace(".", "/") for name in modules)
        return ", ".join(f"`{path.removesuffix('*')}`" for path in paths) or "nothing"

    return f"| {names(row.modules)} | {names(row.may_import)} | {row.so_that} |"


def test_the_map_shows_the_table_of_the_imports() -> None:
    table = map_of_the_house().partition("| place | may import | so that |\n|---|---|---|\n")[2]
    assert table.partition("\n\n")[0].splitlines() == list(map(shown, HOUSE))


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", distribution, maxsplit=1)[0]).lower()


def declared() -> tuple[set[str], set[str]]:
    """The distributions that pyproject.toml names: for the addon with extras, and to work on it."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    needed = chain(project["project"]["dependencies"], *extras)
    return {normal(name) for name in needed}, {
        normal(name) for name in project["dependency-groups"]["dev"]
    }


installed = cache(packages_distributions)


def distributions(folder: Path) -> dict[str, str]:
    """The distribution behind each foreign top-level import below `folder`, and a file with it."""
    modules = sources(folder)
    shared = sources(CHECKOUT / "tests")  # scripts/bench builds its lab with tests/lab
    local = {module.partition(".")[0] for module in (*modules, *shared)} | set(OURS)
    known = installed()
    found: dict[str, str] = {}
    for module, path in modules.items():
        for item in imports(module, path):
            top = item.name.partition(".")[0]
            if top and top not in sys.stdlib_module_names and top not in local:
                here = "" if top in known else ", which is not installed"
                for distribution in known.get(top, [top]):
                    found.setdefault(normal(distribution), f"{path.name} imports {top}{here}")
    return found


def test_no_file_imports_what_is_not_declared() -> None:
    runtime, dev = declared()
    used = distributions(CHECKOUT / "addon")
    assert {name: who for name, who in used.items() if name not in runtime} == {}
    for folder in ("tests", "scripts"):
        used = distributions(CHECKOUT / folder)
        assert {name: who for name, who in used.items() if name not in runtime | dev} == {}


def unused(runtime: set[str], dev: set[str], in_addon: set[str], in_tests: set[str]) -> set[str]:
    """What is declared for nothing: neither imported, nor a tool, nor stubs for what is."""
    stubs = {name for name in dev if name.removeprefix("types-") in in_addon | in_tests}
    return (runtime - in_addon) | (dev - in_tests - set(TOOLS) - stubs)


def test_what_is_declared_is_used() -> None:
    in_tests = set(distributions(CHECKOUT / "tests")) | set(distributions(CHECKOUT / "scripts"))
    assert unused(*declared(), set(distributions(CHECKOUT / "addon")), in_tests) == set()


def test_a_dependency_declared_for_nothing_is_seen() -> None:
    dev = {"types-yaml", "types-redis", "pytest", "flask", "ruff"}
    idle = unused({"yaml", "h11"}, dev, {"yaml"}, {"pytest"})
    assert idle == {"h11", "types-redis", "flask"}


def test_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    plant(tmp_path, "capport/a.py", "import surely_not_installed\nfrom yaml import nodes")
    assert set(distributions(tmp_path)) == {"surely-not-installed", "pyyaml"}


NOT_WHO_IS_KNOWN = {
    *("self._database.is_open", "os.access"),
    *("state.expires", "voucher.expires", "limits.expires"),  # of no session
    "foreign.ends_by_itself",  # when the copy of a session that is long over may be forgotten
}


def decides_who_is_known(tree: ast.AST, *, makes_rules: bool = False) -> Iterator[str]:
    for node in ast.walk(tree):
        found = list[ast.Attribute]()
        if isinstance(node, ast.Attribute):
            said = ast.unparse(node)
            names_access = said.startswith("Access.") and not makes_rules
            reads_rules = said.endswith(("clients.known", "clients.find"))
            if node.attr in {"is_open", "access"} or names_access or reads_rules:
                found = [node]
        elif isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            found = times({"expires", "ends", "ends_by_itself"}, node.left, *node.comparators)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            found = times({"expires", "granted"}, node.left, node.right)
            found = [one for one in found if one.attr == "expires"]
        for one in found:
            if (said := ast.unparse(one)) not in NOT_WHO_IS_KNOWN:
                yield f"{one.lineno}: {said}"


def times(names: set[str], *among: ast.expr) -> list[ast.Attribute]:
    """The one time of a session that is set against something else, such as a clock."""
    found = [one for one in among if isinstance(one, ast.Attribute) and one.attr in names]
    return found if len(found) == 1 else []


def test_who_is_known_is_decided_in_the_core_alone() -> None:
    """Everybody else asks `core.standing`, or `core.session` for the open ones of many.

    Only the policy's parser says what a client rule makes of its client.
    """
    for module, path in sources(CHECKOUT / "addon").items():
        if not within(module, ("capport.core",)):
            makes_rules = within(module, ("capport.policy",))
            tree = ast.parse(path.read_text())
            assert [*decides_who_is_known(tree, makes_rules=makes_rules)] == [], module
    planted = "if session.is_open(now) or self._rule().access is Access.KNOWN: pass"
    assert len(list(decides_who_is_known(ast.parse(planted)))) == 3
    for planted in (
        "a.ends > now",
        "now < a.b.ends_by_itself",
        "a.expires - now()",
        "clients.known()",
    ):
        assert len(list(decides_who_is_known(ast.parse(planted)))) == 1
    for harmless in ("a.ends < b.ends", "a.expires - a.granted", "a.expires != before"):
        assert list(decides_who_is_known(ast.parse(harmless))) == []
