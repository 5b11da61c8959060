"""Shows texts from strangers and files in a terminal: without control characters, in columns."""

import unicodedata


def visible(text: str) -> str:
    """`text` with an escape for each character that a terminal would obey, hide or reorder."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def fit(text: str, columns: int) -> tuple[str, int]:
    """As much of `text`, made `visible`, as fits, and how many characters of it that are."""
    fitting, left = "", columns
    for number, character in enumerate(text):
        shown = visible(character)
        left -= cells(shown)
        if left < 0:
            return fitting, number
        fitting += shown
    return fitting, len(text)
