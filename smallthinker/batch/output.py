"""The output, in one go once all rows have an answer: in the input's order, whole or not at all.

Owns what each format looks like. Knows nothing about how answers were made.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from smallthinker.batch.journal import Journal
from smallthinker.batch.parquet import check_parquet, write_parquet
from smallthinker.batch.rows import FILE, TABLES, Row, Rows
from smallthinker.errors import RequestError, StoreWriteError, shown
from smallthinker.files import check_output, replacing
from smallthinker.host.folders import sync_folder

# Of an answer, what becomes a column: the first by the name that the user gives, before the others with it.
_PARTS = ("text", "reasoning", "finish_reason", "prompt_tokens", "completion_tokens", "error")
_DEFAULT = "output"


def answer_columns(name: str) -> dict[str, str]:
    """The columns by the parts of an answer. name: of the text's; the others are called after it, unless it is the
    usual one."""
    before = "" if name == _DEFAULT else f"{name}_"
    return {part: name if part == "text" else f"{before}{part}" for part in _PARTS}


def check_columns(columns: Iterable[str], answers: Iterable[str]) -> None:
    """Raises RequestError where the input has a column that an answer would have."""
    for name in columns:
        if name in answers:
            raise RequestError(f"column: the input has a column {shown(name)} already; give --column another name")


def check_place(output: Path, source: Path, *, replace: bool, resumes: bool) -> None:
    """Before anything is computed. replace: a file, never a folder, which may hold anything. resumes: what is there can
    only be the job's own. Raises RequestError, StoreWriteError."""
    kind = output.suffix.lower()
    if kind and kind not in TABLES:
        raise RequestError(f"{output}: expected an ending of {', '.join(TABLES)}, or none for a folder of texts")
    if kind == ".parquet":
        check_parquet(output)
    try:
        if kind:
            check_output(output, [source], replace=replace or resumes)
        elif output.exists() and not (resumes and output.is_dir()):
            raise FileExistsError(0, "exists already; give another name, or one that ends in .jsonl, .csv or .parquet")
        elif not os.access(output.absolute().parent, os.W_OK):
            raise PermissionError(0, "its folder isn't there, or there is no permission to write in it")
    except (OSError, ValueError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise StoreWriteError(f"{output}: cannot write: {why}") from None


def write_rows(output: Path, rows: Rows, journal: Journal, columns: list[str], answers: dict[str, str]) -> None:
    """Every row with its answer. columns: the input's. answers: of `answer_columns`. Raises RequestError,
    StoreWriteError, StoreReadError."""
    kind = output.suffix.lower()
    try:
        if not kind:
            _write_texts(output, rows, journal)
            return
        parts = _used(journal, answers)
        full = (row | {parts[part]: answer.get(part) for part in parts} for row, answer in _pairs(rows, journal))
        with replacing(output) as file:
            if kind == ".jsonl":
                file.writelines(map(_json_line, full))
            elif kind == ".csv":
                _write_csv(file, full, [*columns, *parts.values()])
            else:
                write_parquet(output, file, full, rows.path, list(parts.values()))
        sync_folder(output.absolute().parent)
    except OSError as e:
        raise _cannot_write(output, e) from None


def write_lines(output: Path, rows: Rows, journal: Journal) -> None:
    """The answers alone, a line each. Raises as `write_rows`."""
    try:
        with replacing(output) as file:
            file.writelines(_json_line(answer) for _, answer in _pairs(rows, journal))
        sync_folder(output.absolute().parent)
    except OSError as e:
        raise _cannot_write(output, e) from None


def _pairs(rows: Rows, journal: Journal) -> Iterator[tuple[Row, dict[str, Any]]]:
    for index, row in enumerate(rows):
        yield row, journal.answer(index)


def _used(journal: Journal, answers: dict[str, str]) -> dict[str, str]:
    """Without the thoughts where no answer has any."""
    if any(journal.answer(index).get("reasoning") for index in range(journal.done)):
        return answers
    return {part: name for part, name in answers.items() if part != "reasoning"}


def _json_line(row: dict[str, Any]) -> bytes:
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON may have and UTF-8 may not
        return json.dumps(row, default=str).encode() + b"\n"


def _write_csv(file: BinaryIO, rows: Iterable[Row], columns: list[str]) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
    lines = csv.writer(text)
    lines.writerow(columns)
    for row in rows:
        values = (row.get(name) for name in columns)
        lines.writerow([v if isinstance(v, str) or v is None else json.dumps(v, default=str) for v in values])
    text.detach()


def _write_texts(output: Path, rows: Rows, journal: Journal) -> None:
    """A file for each row, called as the one that it came from, or by its number; of an error, NAME.error."""
    folder = output.with_name(f".{output.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for index, (row, answer) in enumerate(_pairs(rows, journal)):
        known = row.get(FILE)
        is_name = isinstance(known, str) and known == Path(known).name and known not in ("", ".", "..")
        name = known if is_name and isinstance(known, str) else f"{index:08}.txt"
        error = answer.get("error")
        with (folder / (name if error is None else f"{name}.error")).open("xb") as file:
            file.write((answer["text"] if error is None else f"{error}\n").encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)
    if output.exists():  # by the same job, killed just before it was done
        shutil.rmtree(output)
    folder.rename(output)
    sync_folder(output.absolute().parent)


def _cannot_write(output: Path, error: OSError) -> StoreWriteError:
    return StoreWriteError(
        f"{output}: cannot be written: {error.strerror or error}; what is done stays: mend that, then the same again"
    )
