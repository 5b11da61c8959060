"""The operator's files in the folder `login/`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capport.core.negotiation import Language
from capport.login.theme import LARGEST, Theme


def test_terms_for_the_language_come_before_those_for_all(tmp_path: Path) -> None:
    (tmp_path / "terms.md").write_text("all", "utf-8")
    (tmp_path / "terms.de.html").write_text("<p>deutsch", "utf-8")
    theme = Theme(tmp_path)
    german, french = theme.terms(Language.GERMAN), theme.terms(Language.FRENCH)
    assert german is not None
    assert french is not None
    assert (german.html, french.html) == ("<p>deutsch", "<p>all</p>\n")
    assert german.version != french.version


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_an_error_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "theme.css")
    with pytest.raises(OSError, match=r"is a (pipe|folder): name a file: .*theme\.css"):
        Theme(tmp_path).style()


def test_a_file_too_large_for_a_login_page_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "theme.css").write_bytes(b" " * (LARGEST + 1))
    with pytest.raises(OSError, match=r"theme\.css"):
        Theme(tmp_path).style()


def test_our_terms_are_there_in_every_language() -> None:
    versions = {Theme().own_terms(language).version for language in Language}
    assert len(versions) == len(Language)
