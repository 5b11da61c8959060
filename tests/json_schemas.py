"""The JSON Schemas that are shipped, and what is wrong with a document by one of them."""

import json
from functools import cache
from importlib.resources import files

from jsonschema import Draft202012Validator


@cache
def validator(name: str) -> Draft202012Validator:
    """By the schema `name` in the package capport."""
    schema = json.loads((files("capport") / name).read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def schema_errors(name: str, document: object) -> list[str]:
    """What is wrong with it, each with its place."""
    return [f"{it.json_path}: {it.message}" for it in validator(name).iter_errors(document)]
