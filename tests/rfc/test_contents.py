"""The page of the RFCs (README.md) has each statement once, and the tests that show it."""

from rfc.contents import NOT_OURS, PAGE, filled_in, marks, rows

ROWS = [(mark, does) for _, mark, does in rows(PAGE.read_text()) if mark]


def test_the_page_is_as_the_marks_of_the_tests_are() -> None:
    page = PAGE.read_text()
    assert page == filled_in(page), "run: .venv/bin/python tests/rfc/contents.py"


def test_each_mark_has_the_words_of_one_row() -> None:
    statements = [mark for mark, _ in ROWS]
    assert len(statements) == len(set(statements))
    assert set(marks()) - set(statements) == set()


def test_what_is_ours_is_shown_by_a_test_and_nothing_else_is() -> None:
    shown = marks()
    for mark, does in ROWS:
        assert (mark in shown) is not does.startswith(NOT_OURS), mark


def test_a_test_named_by_a_section_is_marked_with_it() -> None:
    for (_, section, _), tests in marks().items():
        for file, name in tests:
            if file.startswith("rfc/"):
                assert name.startswith(f"test_{section.lower().replace('.', '_')}_"), name
