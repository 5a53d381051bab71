"""Rows that are done, each durable as soon as it is: an append-only file beside the output, until that is written.

A line is a checksum and JSON. The first says which job it is of; a line that a kill or a power cut tore ends the file,
and what would follow it is computed again. Owns that file and which rows are in it; knows nothing about what an answer
is. One process at a time.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from smallthinker.errors import RequestError, StoreReadError, StoreWriteError, shown
from smallthinker.files import lock_folder, open_fd, parse_json, unlock_folder, write_whole
from smallthinker.host.folders import sync_folder

_FORMAT, _VERSION = "smallthinker-batch", 1
_SUFFIX = ".journal"
_MISSING = -1


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + _SUFFIX)


@dataclass(frozen=True)
class Answered:
    """A row's answer as it is kept. error: what is wrong with the row, if it is the row's own fault."""

    index: int
    answer: Mapping[str, Any]
    error: str | None = None


class Journal:
    """`done` says which rows are there, `answer` gives one back."""

    def __init__(self, output: Path, job: Mapping[str, Any], rows: int, *, anew: bool = False) -> None:
        """Open the one beside this output, or begin it. job: everything that an answer depends on, as JSON has it.
        anew: begin it, whatever is there; one without a finished row is begun anew by any job. Raises RequestError
        where there is one of another job or one that another process writes, StoreWriteError."""
        self.path = journal_path(output)
        self._offsets = array("q", [_MISSING]) * rows
        self.done, self._end = 0, 0
        self._reader: BinaryIO | None = None
        self._file: io.FileIO | None = None
        try:
            if anew or not self.path.exists():
                write_whole(self.path, _head(job))
                sync_folder(self.path.absolute().parent)
            lock = lock_folder(self.path, wait=False)
            if lock is None:
                raise RequestError(f"{self.path}: another process is at work on this batch; wait for it, or end it")
            self._lock = lock
            try:
                self._reader = os.fdopen(open_fd(self.path), "rb")
                self._file = self.path.open("r+b", buffering=0)
                self._read(job)
            except BaseException:
                self.close()
                raise
        except OSError as e:
            if isinstance(e, StoreWriteError):
                raise
            raise _cannot_write(self.path, e) from None

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] != _MISSING

    def keep(self, answered: Sequence[Answered]) -> None:
        """As `add`, if there are any."""
        if answered:
            self.add((one.index, one.answer) for one in answered)

    def add(self, answers: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """These rows are done; durable on return. Raises StoreWriteError, after which none of them counts."""
        assert self._file is not None
        lines, at = list[tuple[int, int, bytes]](), self._end
        for index, answer in answers:
            assert index not in self, index
            lines.append((index, at, _line([index, answer])))
            at += len(lines[-1][2])
        data = memoryview(b"".join(line for _, _, line in lines))
        try:
            self._file.seek(self._end)
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as e:
            raise _cannot_write(self.path, e) from None
        self._end = at
        for index, offset, _ in lines:
            self._offsets[index] = offset
            self.done += 1

    def answer(self, index: int) -> dict[str, Any]:
        """Raises StoreReadError."""
        assert self._reader is not None and index in self
        try:
            self._reader.seek(self._offsets[index])
            found = self._entry(_parsed(self._reader.readline()))
        except OSError as e:
            raise StoreReadError(f"{self.path}: cannot be read: {e.strerror or e}") from None
        if found is None or found[0] != index:
            raise StoreReadError(f"{self.path}: row {index} isn't what was written; give the command again")
        return found[1]

    def close(self) -> None:
        for file in (self._reader, self._file):
            if file is not None:
                file.close()
        unlock_folder(self._lock)

    def remove(self) -> None:
        """The output is there, and durable."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.absolute().parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, job: Mapping[str, Any]) -> None:
        assert self._reader is not None and self._file is not None
        head = self._reader.readline()
        known = self._job_of(_parsed(head))
        self._end = len(head)
        for line in self._reader:
            found = self._entry(_parsed(line))
            if found is None:
                break
            if found[0] not in self:
                self._offsets[found[0]] = self._end
                self.done += 1
            self._end += len(line)
        if self.done:
            self._check(known, job)
        elif known != job:  # nothing would be lost; over the old one, since the lock is this file's
            head = _head(job)
            self._file.write(head)
            self._end = len(head)
        self._file.truncate(self._end)
        os.fsync(self._file.fileno())
        self._reader.close()  # it has read ahead, perhaps of what has just been cut off
        self._reader = os.fdopen(open_fd(self.path), "rb")

    def _entry(self, parsed: Any) -> tuple[int, dict[str, Any]] | None:
        """A line's row and answer; None where it has none."""
        if not (isinstance(parsed, list) and len(parsed) == 2 and isinstance(parsed[1], dict)):
            return None
        is_row = type(parsed[0]) is int and 0 <= parsed[0] < len(self._offsets)
        return (parsed[0], parsed[1]) if is_row else None

    def _job_of(self, head: Any) -> dict[str, Any]:
        if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (_FORMAT, _VERSION):
            raise RequestError(f"{self.path}: expected a journal of `smallthinker batch`, found another file; move it")
        known = head.get("job")
        return known if isinstance(known, dict) else {}

    def _check(self, known: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        for name, value in job.items():
            if known.get(name) != value:
                was, now = shown(known.get(name)), shown(value)
                raise RequestError(
                    f"{self.path}: a batch that was begun with another {name} ({was}, now {now}) waits to be finished: "
                    "give it that again, or another OUTPUT, or --force to begin anew"
                )


def _head(job: Mapping[str, Any]) -> bytes:
    return _line({"format": _FORMAT, "version": _VERSION, "job": dict(job)})


def _line(value: Any) -> bytes:
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _parsed(line: bytes) -> Any:
    """None for a line that isn't whole."""
    checksum, _, data = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(data):
        return None
    try:
        return parse_json(data)
    except ValueError:
        return None


def _cannot_write(path: Path, error: OSError) -> StoreWriteError:
    return StoreWriteError(
        f"{path}: cannot be written: {error.strerror or error}; what is done stays: mend that, then the same again"
    )
