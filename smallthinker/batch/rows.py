"""Rows of an input, one after the other, whatever it is: JSON lines, CSV, Parquet or a folder of texts.

Owns what each format's row looks like and every check of it. Knows nothing about prompts. Nothing is held but one row,
or one group of a Parquet file's.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from smallthinker.batch.parquet import parquet_rows
from smallthinker.errors import RequestError, one_line, shown
from smallthinker.files import is_folder, open_fd, parse_json, read_small

Row = dict[str, Any]

MAX_ROW_BYTES = 16 << 20
TABLES = (".jsonl", ".csv", ".parquet")
FILE, TEXT = "file", "text"
"""The columns of a folder's rows: a text's name, and the text."""


class Rows(ABC):
    """Iterate as often as you like; each time the same rows come in the same order, or the file was changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __iter__(self) -> Iterator[Row]:
        """Raises RequestError with the place of a row that can't be read."""

    def digest(self, row: Row) -> bytes:
        """What differs between two inputs, a row's part of it."""
        return json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass")


def open_rows(path: Path) -> Rows:
    """Raises RequestError: for what isn't there, and a format that isn't known by its name."""
    if is_folder(path):
        return _Texts(path)
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise RequestError(f"{path}: expected a folder of texts or a file {', '.join(TABLES)}; rename or convert it")
    if kind == ".jsonl":
        return _JsonLines(path)
    return _Csv(path) if kind == ".csv" else _Parquet(path)


class _JsonLines(Rows):
    def __iter__(self) -> Iterator[Row]:
        with _opened(self.path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES + 1), b""), 1):
                where = f"{self.path}, line {number}"
                if len(line) > MAX_ROW_BYTES:
                    raise RequestError(f"{where}: expected at most {MAX_ROW_BYTES} bytes, found more")
                if not line.strip():
                    continue
                try:
                    row = parse_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                except ValueError as e:
                    raise RequestError(f"{where}: expected a JSON object: {one_line(e)}") from None
                if not isinstance(row, dict):
                    raise RequestError(f"{where}: expected a JSON object, found {shown(row)}")
                yield row


class _Csv(Rows):
    """With a first line of names. Every value is text, as it is written: "007" stays so."""

    def __iter__(self) -> Iterator[Row]:
        import io

        csv.field_size_limit(MAX_ROW_BYTES)
        with _opened(self.path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            try:
                names = next(lines, [])
                if not names or len(set(names)) < len(names):
                    raise RequestError(f"{self.path}, line 1: expected columns' names, each once, found {shown(names)}")
                for values in lines:
                    if not values:  # an empty line
                        continue
                    if len(values) != len(names):
                        raise RequestError(
                            f"{self.path}, line {lines.line_num}: expected {len(names)} values, found {len(values)}"
                        )
                    yield dict(zip(names, values, strict=True))
            except csv.Error as e:
                raise RequestError(f"{self.path}, line {lines.line_num}: expected CSV: {e}") from None
            except UnicodeDecodeError as e:
                raise RequestError(f"{self.path}: expected CSV in UTF-8: {e.reason} at line {lines.line_num}") from None


class _Parquet(Rows):
    def __iter__(self) -> Iterator[Row]:
        return parquet_rows(self.path)


class _Texts(Rows):
    """A folder's files but for hidden ones, by name; not those of folders in it."""

    def __iter__(self) -> Iterator[Row]:
        try:
            paths = sorted(path for path in self.path.iterdir() if path.is_file() and not path.name.startswith("."))
        except OSError as e:
            raise RequestError(f"{self.path}: cannot be read: {e.strerror or e}") from None
        for path in paths:
            try:
                yield {FILE: path.name, TEXT: read_small(path, MAX_ROW_BYTES).decode("utf-8")}
            except (OSError, UnicodeDecodeError) as e:
                why = f"byte {e.start} is no UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror or e
                raise RequestError(f"{path}: expected a text in UTF-8: {why}; take it out of the folder") from None


def _opened(path: Path) -> Any:
    import os

    try:
        return os.fdopen(open_fd(path), "rb")
    except OSError as e:
        raise RequestError(f"{path}: cannot be read: {e.strerror or e}") from None


class InputFacts:
    """What one look at all rows tells: how many there are, their columns, and what tells this input from others."""

    def __init__(self) -> None:
        self.count = 0
        self.columns: dict[str, None] = {}
        self._hash = sha256()

    def add(self, rows: Rows, row: Row) -> None:
        self.count += 1
        self.columns |= dict.fromkeys(row)
        self._hash.update(rows.digest(row) + b"\n")

    @property
    def identity(self) -> str:
        return self._hash.hexdigest()
