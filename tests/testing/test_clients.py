"""The page of clients: made by hand, but with every client and kind that the script has."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from capport.testing.kinds import KINDS

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "addon" / "capport" / "testing" / "CLIENTS.md").read_text()


def script() -> ModuleType:
    path = CHECKOUT / "scripts" / "clients.py"
    spec = importlib.util.spec_from_file_location("clients", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_two_rows_for_each_client_and_a_column_for_each_kind() -> None:
    made_by = script()
    for client in made_by.CLIENTS:
        assert len(re.findall(rf"^\| {re.escape(client.name)} \([\d.]+\) \|", PAGE, re.M)) == 2
    headers = re.findall(r"^\| client \| (.*) \|$", PAGE, re.M)
    plain, secure = (re.findall(r"`([\w-]+)`", header) for header in headers)
    assert (plain, secure) == (list(made_by.PLAIN), list(made_by.SECURE))
    assert set(plain) | set(secure) == set(KINDS)


def test_the_page_says_when_it_was_made() -> None:
    assert re.search(r"made this page on 20\d\d-\d\d-\d\d", PAGE)
