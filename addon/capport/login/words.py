"""The texts of the login server's pages and printed vouchers: in `texts/`, one file a language."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil

from capport.core.negotiation import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The texts in one language. `str.format` fills in `{name}`."""

    language: Language
    own_name: str  # the name of the language, in that language
    choose_language: str

    welcome: str
    welcome_to: str
    terms: str
    accept: str
    by_signing_in: str
    by_staying: str
    voucher: str
    voucher_hint: str
    name: str
    password: str
    go_online: str
    how_long: str
    not_encrypted: str

    no_code: str
    no_longer: str
    too_many: str
    terms_changed: str

    online: str
    online_text: str
    onward: str
    onward_none: str
    left: str  # the text before the time
    idle: str
    always_on: str
    device: str
    signed_in_with: str
    sign_out: str
    extend: str
    status: str
    come_back: str  # `{place}` becomes a link
    over: str
    signed_out: str
    signed_out_text: str
    sign_in_again: str

    start_again: str

    # By condition: terms, voucher or password.
    lead: Mapping[str, str]  # above the form
    more: Mapping[str, str]  # the same, for a client that has time left
    wrong: Mapping[str, str]
    by: Mapping[str, str]  # how the client signed in

    sheet: Mapping[str, str]  # of vouchers, to print
    errors: Mapping[str, Sequence[str]]  # heading and text
    units: Sequence[Sequence[str]]  # day, hour, minute, second: singular and plural
    soon: str

    def time(self, seconds: float) -> str:
        """A length of time in words, in at most two units: 2 hours 5 minutes; 1 day 3 hours."""
        minutes = int(seconds // 60)
        counts = (minutes // 1440, minutes // 60 % 24, minutes % 60)
        first = next((at for at, count in enumerate(counts) if count), None)
        if first is None:
            return self.soon
        said = [
            self._count(count, at)
            for at, count in enumerate(counts)
            if count and at in (first, first + 1)
        ]
        return " ".join(said)

    def rounded(self, seconds: float) -> str:
        """As `time`, to the nearest minute, so that 7:59:59 left is shown as 8 hours."""
        return self.time(seconds if seconds < 60 else seconds + 30)

    def wait(self, seconds: float) -> str:
        """How long to wait: in seconds below a minute, else rounded up to a whole minute."""
        whole = max(1, round(seconds))
        return self._count(whole, 3) if whole < 60 else self.time(ceil(whole / 60) * 60)

    def _count(self, count: int, unit: int) -> str:
        return f"{count}\N{NO-BREAK SPACE}{self.units[unit][count != 1]}"


def _words(language: Language) -> Words:
    text = (files(__package__) / "texts" / f"{language}.toml").read_text("utf-8")
    return Words(language=language, **tomllib.loads(text))


WORDS = {language: _words(language) for language in Language}
