"""Checks documents against the JSON Schemas that are shipped."""

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from jsonschema import Draft202012Validator


@cache
def validator(name: str) -> Draft202012Validator:
    """Validates by the schema `name` in the package capport."""
    schema = json.loads((files("capport") / name).read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def wrong_events(events: Iterable[object]) -> list[object]:
    """The events that are not as events.schema.json says, and why; once for each reason."""
    errors = {(*schema_errors("events.schema.json", one),): one for one in events}
    return [(why, one) for why, one in errors.items() if why]


def schema_errors(name: str, document: object) -> list[str]:
    """What is wrong with it, each with its place."""
    return [f"{it.json_path}: {it.message}" for it in validator(name).iter_errors(document)]
