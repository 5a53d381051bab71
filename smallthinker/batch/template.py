"""A prompt with `{column}` in it, filled in from a row; `{{` and `}}` are braces.

What a row brings is put in as it is and never read again for fields. Knows nothing about models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from smallthinker.errors import RequestError, shown

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    def __init__(self, text: str) -> None:
        """Raises RequestError for a brace without its other."""
        self.text = text
        self._parts: list[tuple[bool, str]] = []  # (is a field, its name or text)
        at = 0
        for found in _PART.finditer(text):
            self._parts.append((False, text[at : found.start()]))
            at = found.end()
            if found[1] is not None:
                self._parts.append((True, found[1].strip()))
            elif len(found[0]) == 2:
                self._parts.append((False, found[0][0]))
            else:
                raise RequestError(
                    f"prompt_template: a single {found[0]} at character {found.start()}; a field is {{column}}, a "
                    f"brace is {2 * found[0]}"
                )
        self._parts.append((False, text[at:]))

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(name for is_field, name in self._parts if is_field))

    def check(self, columns: Iterable[str]) -> None:
        """Raises RequestError for a field that no row has."""
        known = list(columns)
        for name in self.fields:
            if name not in known:
                has = ", ".join(map(shown, known[:12])) or "none"
                raise RequestError(f"prompt_template: no column {shown(name)}; the input has {has}")

    def fill(self, row: Mapping[str, Any]) -> str:
        """Raises RequestError for a column that this row lacks."""
        return "".join(_text(row, text) if is_field else text for is_field, text in self._parts)


def _text(row: Mapping[str, Any], name: str) -> str:
    """Text as it is, nothing where there is none, all else as JSON has it."""
    if name not in row:
        raise RequestError(f"prompt_template: this row has no column {shown(name)}")
    value = row[name]
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
