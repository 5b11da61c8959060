"""The sentences of the replies: `texts/` has a file for each language.

Units of time are words, because a screen reader reads "s" as a letter. `str.format` fills in
`{name}`; it does not interpret braces in the text that it fills in.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from capport.core.negotiation import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """The sentences in one language."""

    second: str
    seconds: str

    # 511, as a page
    sign_in: str
    sign_in_named: str
    before_use: str
    not_the_origin: str
    link: str
    taken_now: str
    taken_later: str
    # 511, in a sentence
    sign_in_at: str
    sign_in_at_named: str
    # 511, to a blocked client
    not_allowed: str
    ask_operator: str

    # 428
    precondition_required: str
    be_conditional: str
    how_to_resubmit: str
    how_to_resubmit_a_copy: str

    # 429
    too_many_requests: str
    too_many_from_you: str
    limit: str
    try_again: str

    # 431
    fields_too_large: str
    field_too_large: str
    a_field_too_large: str
    all_too_large: str
    make_smaller: str

    def time(self, seconds: float) -> str:
        """`seconds` in words: 1 second, 2.5 seconds."""
        number = f"{seconds:.3f}".rstrip("0").rstrip(".")
        return f"{number} {self.second if number == '1' else self.seconds}"


@cache
def phrases_in(language: Language) -> Phrases:
    """The sentences in `language`. Its file is a part of the program, and is read once."""
    import tomllib  # here, because most commands send no reply, and start faster without it

    file = Path(__file__).with_name("texts") / f"{language}.toml"
    return Phrases(**tomllib.loads(file.read_text("utf-8")))
