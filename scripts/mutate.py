"""Whether the tests of each module in `core/` see each small change to it.

`scripts/check --mutate [MODULE ...]` makes one change at a time, in memory, in a process of its
own. mutants.txt lists those that change nothing. We do not use mutmut, because it leaves the
defaults of classes alone, nor cosmic-ray, because it leaves statements alone.
"""

import ast
import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from pathlib import Path
from resource import RLIMIT_CPU, setrlimit
from typing import Any

import pytest
from hypothesis import Phase, settings

CHECKOUT = Path(__file__).resolve().parents[1]
CORE, TESTS = CHECKOUT / "addon/capport/core", CHECKOUT / "tests/core"
PYTEST = (
    "-xqpno:cacheprovider",
    "-pno:unraisableexception",
    "--noconftest",
    "--assert=plain",  # else pytest loads our package itself, because it has a plugin
    "--tb=no",
    "-pno:timeout",
)
OF = {"phrases": "test_reply.py", "verdict": "test_decision.py", "__init__": "test_policy.py"}
EXAMPLES = settings(settings.get_profile("ci"), phases=[Phase.generate])

NEVER_RUN = {"annotation", "returns", "decorator_list", "bases", "type_params", "pattern", "op"}
PAIRS = (
    *((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Lt, ast.LtE)),
    *((ast.Gt, ast.GtE), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.LShift, ast.RShift)),
)
OTHER: dict[type[ast.AST], Any] = {
    one: other for pair in PAIRS for one, other in (pair, pair[::-1])
}

type Change = tuple[ast.AST, str, object]
"""A node, a field of it, and what to set that to."""


def instead_of(node: ast.AST, field: str, parent: ast.AST) -> Iterator[ast.AST | None]:
    """What to put in the place of `node`; None removes it."""
    if field in {"test", "ifs"} or isinstance(parent, ast.BoolOp):
        yield from (ast.Constant(True), ast.Constant(False))
    if field in {"elts", "keywords", "lower", "upper"}:
        yield None
    match node:
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(str() as value) if value and field != "elts":
            yield ast.Constant("")
        case ast.Return(None | ast.Constant(None)) if isinstance(parent, ast.FunctionDef):
            pass  # the function ends there all the same
        case ast.Return() | ast.Raise() | ast.Continue() | ast.AugAssign() | ast.Expr():
            yield ast.Pass()
        case ast.Assign([ast.Attribute()]):
            yield ast.Pass()
        case ast.Compare(left, [op], right) if type(op) in OTHER:
            yield ast.Compare(left, [OTHER[type(op)]()], right)
        case ast.BinOp(left, op, right) if type(op) in OTHER:
            yield ast.BinOp(left, OTHER[type(op)](), right)
        case ast.Call(ast.Attribute(text), [] | [ast.Constant()], []):
            yield text  # without lower(), removeprefix() and similar calls
        case ast.Call(ast.Name("min" | "max" as name), arguments, keywords):
            yield ast.Call(ast.Name("min" if name == "max" else "max"), arguments, keywords)
        case ast.match_case(pattern, _, body):
            yield ast.match_case(pattern, ast.Constant(False), body)


def changes(parent: ast.AST, within: str) -> Iterator[tuple[str, Change]]:
    """Each change beneath `parent`, and what to call it."""
    within += f".{parent.name}" if isinstance(parent, ast.FunctionDef | ast.ClassDef) else ""
    for field, value in ast.iter_fields(parent):
        nodes = value if isinstance(value, list) else [value]
        for i, node in enumerate(nodes):
            match node:
                case ast.Expr(ast.Constant()) | ast.TypeAlias() | ast.Tuple(ctx=ast.Store()):
                    continue  # a docstring, a type, names that are assigned to
                case ast.AST() if field not in NEVER_RUN:
                    for other in instead_of(node, field, parent):
                        texts = [ast.unparse(it).partition("\n")[0] for it in (node, other) if it]
                        put = [*nodes[:i], *([other] if other else []), *nodes[i + 1 :]]
                        new = put if isinstance(value, list) else other
                        yield f"{within}: {' -> '.join(texts)}", (parent, field, new)
                    yield from changes(node, within)


def tests_of(stem: str) -> str:
    return str(TESTS / OF.get(stem, f"test_{stem}.py"))


def changes_of(stem: str) -> tuple[ast.Module, dict[str, Change]]:
    """A module, and each change to it by a name that no other has."""
    tree = ast.parse((CORE / f"{stem}.py").read_text())
    named: dict[str, Change] = {}
    for name, change in changes(tree, stem):
        count = sum(other.partition(" #")[0] == name for other in named)
        named[f"{name} #{count + 1}" if count else name] = change
    return tree, named


def run(stem: str, name: str) -> None:
    """End this process as the tests of a module end with its change of that name."""
    tree, named = changes_of(stem)
    setattr(*named[name])
    code = compile(ast.fix_missing_locations(tree), stem, "exec")
    get_code = SourceFileLoader.get_code
    SourceFileLoader.get_code = lambda self, module: (  # type: ignore
        code if module == f"capport.core.{stem}" else get_code(self, module)
    )
    setrlimit(RLIMIT_CPU, (30, 30))  # seconds; a change may make a loop endless
    with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
        os._exit(pytest.main([*PYTEST, tests_of(stem)]))


def seen(task: tuple[str, str]) -> bool:
    process = get_context("fork").Process(target=run, args=task)
    process.start()
    process.join()
    return process.exitcode != 0


def main() -> None:
    # cost.py has only bounds, which tests/proxy/test_costs.py measures.
    stems = sys.argv[1:] or sorted({path.stem for path in CORE.glob("*.py")} - {"cost"})
    settings.register_profile("mutate", EXAMPLES)
    settings.load_profile("mutate")
    # The same examples each time, and few: a row in a table sees more, and sooner.
    type.__setattr__(settings, "max_examples", property(lambda _: 5))
    if pytest.main([*PYTEST, *{tests_of(stem) for stem in stems}]):
        sys.exit("The tests fail without any change.")
    for name in [*sys.modules]:
        if name.partition(".")[0] in {"capport", "tests"}:
            del sys.modules[name]
    gc.freeze()
    listed = set((CHECKOUT / "scripts/mutants.txt").read_text().splitlines())
    tasks = [(stem, name) for stem in stems for name in changes_of(stem)[1]]
    of_these = {line for line in listed if line.partition(":")[0].partition(".")[0] in stems}
    gone = of_these - {name for _, name in tasks}
    wrong = len(gone)
    for name in sorted(gone):
        print(name, "(is no change any more, yet in mutants.txt)")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, name), dead in zip(tasks, pool.map(seen, tasks), strict=True):
            if dead == (name in listed):
                wrong += 1
                print(
                    name, "(is seen, yet in mutants.txt)" if dead else "(is not seen)", flush=True
                )
    sys.exit(f"{wrong} of {len(tasks)} changes" if wrong else None)


if __name__ == "__main__":
    main()
