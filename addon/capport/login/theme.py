"""The operator's files for the login server: in the folder `login/` beside the policy.

    terms.md, terms.de.md, ...   the terms, in Markdown or (terms.html) HTML
    logo.svg|png|webp|jpg        instead of our logo
    theme.css                    after our own style; `:root { --accent: #0b57d0 }` is often enough
    templates/sign_in.html       instead of our page of that name
    return.pem                   the public key of another login server, instead of our own forms

All are optional, and are read again when they change. We trust them, because the operator wrote
them; our Content-Security-Policy applies to them too. A template is a Tornado template: it can run
any code, with our permissions.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from markdown_it import MarkdownIt
from tornado.template import BaseLoader, Template

from capport.core.negotiation import Language
from capport.linux.file_state import state_of
from capport.linux.safe_files import open_regular

LARGEST = 1024 * 1024
"""Bytes that an operator's file may have: every client downloads it over Wi-Fi."""

NO_FILES = Path(os.devnull)
"""As a folder, it has no files."""

_LOGOS = {"svg": "image/svg+xml", "png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
_OURS = files(__package__)
_LANGUAGES = ("", *(f".{language}" for language in Language))


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms as one client reads them. `version` changes whenever the text does."""

    source: str
    html: str
    language: Language
    version: str


@dataclass(frozen=True, slots=True)
class Asset:
    """A file for the browser, which may keep it for ever: `version` changes with the bytes."""

    body: bytes
    media_type: str
    version: str


class Theme:
    """The files for one policy. `folder` is the operator's; without one, only ours are used."""

    def __init__(self, folder: Path = NO_FILES) -> None:
        self.folder = folder
        self._loader = _Loader(self)
        self._stamp: object = None

    def terms(self, language: Language) -> Terms | None:
        """The operator's terms in `language`, else those for all languages; None without any.

        Raises OSError or UnicodeError if they are there and cannot be read. Ours must not replace
        them then.
        """
        for stem in (f"terms.{language}", "terms"):
            for suffix in (".md", ".html"):
                if (body := self._read(stem + suffix)) is not None:
                    return _terms(body.decode("utf-8-sig"), suffix, language)
        return None

    def own_terms(self, language: Language) -> Terms:
        """Our own terms, for an operator who has none."""
        return _terms((_OURS / "terms" / f"{language}.md").read_text("utf-8"), ".md", language)

    def return_key(self) -> bytes | None:
        """The public key of another login server that signs clients in (signed_return.py)."""
        return self._read("return.pem")

    @property
    def signs_in_elsewhere(self) -> bool:
        """Whether that other login server signs clients in, so that our own forms are off.

        A key that is there and cannot be read counts: then nobody signs clients in.
        """
        try:
            return self.return_key() is not None
        except OSError:
            return True

    def style(self) -> Asset:
        """Our style sheet, followed by the operator's."""
        ours = (_OURS / "style.css").read_bytes()
        return _asset(ours + b"\n" + (self._read("theme.css") or b""), "text/css; charset=utf-8")

    def logo(self) -> Asset | None:
        """The operator's logo, if any."""
        for suffix, media_type in _LOGOS.items():
            if (body := self._read(f"logo.{suffix}")) is not None:
                return _asset(body, media_type)
        return None

    def mark(self) -> Asset:
        """Our own logo: the icon of the pages, if the operator has no logo."""
        return _asset((_OURS / "mark.svg").read_bytes(), _LOGOS["svg"])

    def template(self, name: str) -> Template:
        """The compiled template `name`: the operator's, else ours.

        Raises OSError, or tornado.template.ParseError if the operator's has an error.
        """
        if (stamp := self._templates_stamp()) != self._stamp:
            self._loader.reset()
            self._stamp = stamp
        return self._loader.load(name)

    def template_source(self, name: str) -> bytes:
        """The source text of the template `name`."""
        theirs = self._read(f"templates/{name}")
        return (_OURS / "templates" / name).read_bytes() if theirs is None else theirs

    def unused(self) -> Iterator[str]:
        """A sentence for each file in the folder that has no use there, with advice."""
        pages = {entry.name for entry in (_OURS / "templates").iterdir()}
        for folder, names in ((self.folder, _names()), (self.folder / "templates", pages)):
            for path in sorted(folder.glob("[!.]*")):
                if path.is_file() and path.name not in names:
                    yield f"{path} has no use: {_advice(path.name, names, pages)}"

    def _templates_stamp(self) -> object:
        try:
            return sorted(map(state_of, (self.folder / "templates").iterdir()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            with open_regular(path) as file:
                body = file.read(LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(body) > LARGEST:
            raise OSError(f"{path} is larger than {LARGEST} bytes, too large for a login page")
        return body


def _names() -> set[str]:
    """The names that a file in the folder may have."""
    terms = {f"terms{language}{kind}" for language in _LANGUAGES for kind in (".md", ".html")}
    return terms | {f"logo.{kind}" for kind in _LOGOS} | {"theme.css", "return.pem"}


def _advice(name: str, names: set[str], pages: set[str]) -> str:
    if name.lower().startswith("terms"):
        kind = "html" if name.lower().endswith("html") else "md"
        spoken = ", ".join(sorted(Language))
        return f"call it terms.{kind}, or terms.LANGUAGE.{kind} for one of {spoken}"
    if name in pages:
        return f"put it into templates/{name}"
    if like := get_close_matches(name.lower(), sorted(names), 1):
        return f"did you mean {like[0]}?"
    return f"possible names are {', '.join(sorted(names))}"


class _Loader(BaseLoader):
    """Loads a theme's template, and the templates that it extends or includes."""

    def __init__(self, theme: Theme) -> None:
        super().__init__(whitespace="single")
        self._theme = theme

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        return Template(self._theme.template_source(name), name=name, loader=self)


@lru_cache(64)
def _terms(source: str, suffix: str, language: Language) -> Terms:
    # html=False, so that HTML in Markdown that was pasted from elsewhere has no effect.
    html = source
    if suffix == ".md":
        html = MarkdownIt("commonmark", {"html": False}).enable("table").render(source)
    return Terms(source, html, language, hashlib.sha256(source.encode()).hexdigest()[:12])


@lru_cache(16)
def _asset(body: bytes, media_type: str) -> Asset:
    return Asset(body, media_type, hashlib.sha256(body).hexdigest()[:12])
