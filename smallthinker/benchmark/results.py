"""The results file: JSON lines, one for each finished run, so that an interrupted benchmark goes on where it stopped.

Owns reading, appending, and what makes two benchmarks the same one. What a line may hold is schema.json's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallthinker import host
from smallthinker.benchmark.matrix import Cell
from smallthinker.benchmark.schema_check import check_row
from smallthinker.errors import ResultsError
from smallthinker.files import is_folder, parse_json, read_small, write_whole

FILE = "results.jsonl"
_MOST_BYTES = 256 << 20
_INCIDENTAL = ("kind", "measured", "profiles")  # of the environment: may differ between two parts of one benchmark
Row = dict[str, Any]
Notice = Callable[[str], None]


@dataclass
class Results:
    """What a file holds, in its order."""

    path: Path
    environment: Row
    rows: list[Row] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    def has_run(self, cell: Cell, repeat: int) -> bool:
        return any(cell_of(row) == cell and row["repeat"] == repeat for row in self.of_kind("run"))

    def routing(self, prompt_tokens: int) -> Row | None:
        return next((row for row in self.of_kind("routing") if row["prompt_tokens"] == prompt_tokens), None)

    def append(self, row: Row) -> None:
        """One line more, on the disk before this returns, or none. Raises ResultsError."""
        try:
            _append(self.path, row)
        except OSError as e:
            raise _cannot_write(self.path, e) from None
        self.rows.append(row)

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Only these rows from now on. The file is replaced in one step. Raises ResultsError."""
        kept = [row for row in self.rows if wanted(row)]
        try:
            write_whole(self.path, "".join(map(_line, [self.environment, *kept])).encode())
        except OSError as e:
            raise _cannot_write(self.path, e) from None
        self.rows = kept

    def prompts(self) -> set[int]:
        return {row["prompt_tokens"] for row in self.rows}


def cell_of(row: Row) -> Cell:
    return Cell(row["memory_bytes"], row["profile"], row["prompt_tokens"])


def read_results(path: Path, notice: Notice) -> Results:
    """A results file, or the one in a folder. A last line that was cut off is left out, and `notice` told.

    Raises ResultsError: can't be read, no results file, or a line that the schema doesn't allow.
    """
    results, whole_bytes = _parse(path / FILE if is_folder(path) else path)
    lost = results.path.stat().st_size - whole_bytes
    if lost:
        notice(f"{results.path}: the last line is cut off; its {lost} bytes are left out")
    return results


@contextmanager
def begin(folder: Path, environment: Row, *, force: bool, notice: Notice) -> Iterator[Results]:
    """The folder's results, to go on with, or a new file; the folder is this process's alone until the end.

    A last line that was cut off is removed. force: results of another environment are replaced. Raises ResultsError
    where there are such results, or the folder is in use or can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = host.lock_folder(folder, wait=False)
    except OSError as e:
        raise ResultsError(f"{folder}: cannot write: {e.strerror or e}; give another folder") from None
    if lock is None:
        raise ResultsError(f"{folder}: another benchmark is writing there; wait for it, or give another folder")
    try:
        yield _begin(folder / FILE, environment, force, notice)
    finally:
        host.unlock_folder(lock)


def _begin(path: Path, environment: Row, force: bool, notice: Notice) -> Results:
    try:
        if path.exists():
            results, whole_bytes = _parse(path)
            lost = path.stat().st_size - whole_bytes
            if lost:
                notice(f"{path}: the last line was cut off, by an interruption or a full disk; removed, {lost} bytes")
                os.truncate(path, whole_bytes)
            other = difference(results.environment, environment)
            if other is None:
                results.environment = results.environment | {
                    "profiles": results.environment["profiles"] | environment["profiles"]
                }
                results.keep(lambda _: True)
                return results
            if not force:
                raise ResultsError(
                    f"{path}: holds other results: {other}; give another folder, or `force` to replace them"
                )
            notice(f"{path}: replaced, since its {other}")
    except OSError as e:
        raise _cannot_write(path, e) from None
    new = Results(path, environment)
    new.keep(lambda _: True)
    return new


def difference(before: Row, now: Row) -> str | None:
    """The first fact of two environments that differs, in words; None where figures may stand side by side."""
    for part in now:
        if part in _INCIDENTAL or before.get(part) == now[part]:
            continue
        if not isinstance(now[part], dict):
            return f"{part} is {before.get(part)!r}, now {now[part]!r}"
        for key in now[part]:
            if before[part].get(key) != now[part][key]:
                return f"{part}'s {key} is {before[part].get(key)!r}, now {now[part][key]!r}"
    for name, profile in now.get("profiles", {}).items():
        if before["profiles"].get(name, profile) != profile:
            return f"profile {name!r} has other figures"
    return None


def _parse(path: Path) -> tuple[Results, int]:
    """The rows, and the bytes of whole lines."""
    try:
        raw = read_small(path, _MOST_BYTES)
    except OSError as e:
        raise ResultsError(
            f"{path}: expected a results file of `smallthinker bench`, or its folder: {e.strerror or e}"
        ) from None
    whole_bytes = raw.rfind(b"\n") + 1
    rows: list[Row] = []
    for number, line in enumerate(raw[:whole_bytes].splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            row = parse_json(line)
        except ValueError as e:
            raise ResultsError(f"{where}: expected JSON: {e}; remove the line, or measure again") from None
        check_row(row, where)
        if (row["kind"] == "environment") != (number == 1):
            raise ResultsError(f"{where}: expected one line of kind environment, the first; found kind {row['kind']}")
        rows.append(row)
    if not rows:
        raise ResultsError(f"{path}: expected results, found no whole line; remove the file, or give another")
    return Results(path, rows[0], rows[1:]), whole_bytes


def routing_file(folder: Path, prompt_tokens: int) -> Path:
    """Where a benchmark keeps the routing of its answers."""
    return folder / f"routing-{prompt_tokens}.trace"


def _append(path: Path, row: Row) -> None:
    line = memoryview(_line(row).encode())
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)  # a full disk: not half a line
            raise


def _cannot_write(path: Path, e: OSError) -> ResultsError:
    return ResultsError(f"{path}: cannot write: {e.strerror or e}; make room, or give another folder")


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
