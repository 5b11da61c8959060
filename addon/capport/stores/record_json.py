"""Reads the JSON of records that routers share, and refuses whatever does not fit its format."""

import json
from collections.abc import Mapping
from typing import Any, Final

from capport.core.client import ClientId, parse_client_id

WHOLE: Final = 1 << 53
"""A whole number from this on is not exact in every language's JSON."""


class RecordError(ValueError):
    """A record that does not fit the format."""


def load(text: str | bytes, *, version: int, largest: int) -> dict[str, Any]:
    """The object in `text`, of up to `largest` characters, in a format up to `version`."""
    if len(text) > largest:
        raise RecordError(f"{len(text)} characters long: at most {largest} are allowed")
    try:
        # Strictly UTF-8: of bytes, `json` accepts UTF-16 and UTF-32 too.
        found = json.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RecordError("not a JSON object")
    if (theirs := number(found, "v", 1)) > version:
        raise RecordError(
            f"format {theirs}, written by a newer capport; this one knows format {version}"
        )
    return found


def members(found: Mapping[str, Any], name: str, most: int) -> dict[str, Any]:
    """The object `name`."""
    value = found.get(name)
    if isinstance(value, dict) and len(value) <= most:
        return value
    raise RecordError(f"{name}: not an object with at most {most} members")


def number(found: Mapping[str, Any], name: str, least: int = 0) -> int:
    """The whole number `name`."""
    value = found.get(name)
    if type(value) is int and least <= value < WHOLE:
        return value
    raise RecordError(f"{name}: not a whole number from {least} to {WHOLE - 1}")


def text(found: Mapping[str, Any], name: str, most: int) -> str:
    """The text `name`, which UTF-8 can carry."""
    value = found.get(name)
    if isinstance(value, str) and len(value) <= most:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise RecordError(f"{name}: not a text of at most {most} characters")


def client_of(found: Any) -> ClientId:
    """`found`, if it is a client's id in its one spelling."""
    try:
        if isinstance(found, str) and parse_client_id(found) == found:
            return ClientId(found)
    except ValueError:
        pass
    raise RecordError(f"client: neither a MAC nor an address nor both: {found!r:.60}")
