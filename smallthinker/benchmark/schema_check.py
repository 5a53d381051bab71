"""The published schema of a results file, and whether a line follows it.

The schema is schema.json beside this file: what it says of a field is the field's documentation.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from smallthinker.errors import ResultsError

SCHEMA = Path(__file__).with_name("schema.json")


@cache
def _validator() -> Any:
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise ResultsError("reading results needs the package jsonschema: pip install 'smallthinker[bench]'") from None
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def check_row(row: object, where: str) -> None:
    """Raises ResultsError, naming the field, what was found there and what is expected."""
    error = next(_validator().iter_errors(row), None)
    if error is not None:
        at = ".".join(str(part) for part in error.absolute_path) or "the line"
        message = " ".join(error.message.split())
        raise ResultsError(f"{where}: {at}: {message[:200]}; expected as in the schema of results ({SCHEMA.name})")
