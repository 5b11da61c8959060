"""Puts a fault into the front, so that a test can show that it would find it."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest


@dataclass(frozen=True)
class Fault:
    """A place in the source, what it says instead, and a policy under which that is wrong."""

    module: str
    was: str
    becomes: str
    policy: str = "a state"


def put_in(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Loads the module once more, with the fault, and gives it to all that use its names."""
    module = importlib.import_module(f"capport.{fault.module}")
    assert module.__file__
    source = Path(module.__file__).read_text()
    assert source.count(fault.was) == 1
    faulty = ModuleType(module.__name__)
    patch.setitem(sys.modules, module.__name__, faulty)  # for dataclasses
    exec(compile(source.replace(fault.was, fault.becomes), module.__file__, "exec"), vars(faulty))
    patch.setitem(sys.modules, module.__name__, module)
    right = dict(vars(module))
    users = [it for name, it in sys.modules.items() if name.startswith(("capport.", "front."))]
    for user in users:
        for name, value in tuple(vars(user).items()):
            if value is right.get(name) and hasattr(value, "__module__"):
                patch.setattr(user, name, vars(faulty)[name])
