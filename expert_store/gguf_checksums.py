"""What a GGUF file's bytes were when all of it was read first: kept beside it, and compared at every later read.

Owns which bytes have one checksum: of each file its header, of each expert each matrix, each 16 rows of a table of
which single rows are read, every other tensor. Which of them are read when is for `gguf_store` and the read queue to
know.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker.errors import CheckpointError, StoreFormatError, StoreReadError
from smallthinker.expert_store.format import TILE_ROWS
from smallthinker.expert_store.header import fault
from smallthinker.expert_store.progress import Progress
from smallthinker.expert_store.sidecar import SPAN, Spans, read_spans, write_spans
from smallthinker.expert_store.sources.gguf_checkpoint import Found, GgufCheckpoint
from smallthinker.expert_store.sources.gguf_records import GgufRecords
from smallthinker.expert_store.store import Verified
from smallthinker.models.tensors import table_tensors

_REMEDY = "the file changed since it was verified, or the disk fails: check the disk, copy or download it again"


class Checksums:
    """Of an opened file. experts: uint32, as `GgufRecords.spans` has them; None where nothing is known yet."""

    def __init__(self, source: GgufCheckpoint, records: GgufRecords, places: tuple[Path, ...]) -> None:
        """places: where they may be kept. Raises StoreFormatError, StoreReadError."""
        self._source, self._records, self._places = source, records, places
        self.experts: npt.NDArray[np.uint32] | None = None
        self._headers: list[tuple[int, int, int, int]] = []
        self._tensors: dict[str, tuple[int, int, int, int]] = {}  # file, start, bytes, checksum
        self._groups = np.zeros(0, SPAN)  # of the table's rows
        self._kept = read_spans(places)
        if self._kept is None:
            return
        path, found = self._kept
        spans, headers = self._spans(), len(source.files)
        if len(found) != len(spans) or any((found[key] != spans[key]).any() for key in ("file", "start", "nbytes")):
            raise StoreFormatError(
                f"{path}: expected checksums of the tensors that {source.path} has, found others; one of the two was "
                "replaced or damaged: delete this one if the model is what its publisher says, and run "
                "smallthinker verify"
            )
        self._headers = [_numbers(span) for span in found[:headers]]
        count, dense = len(records.spans()), self._dense_names()
        self.experts = found["crc32"][headers : headers + count].copy()
        others = found[headers + count :]
        self._tensors = dict(zip(dense, map(_numbers, others[: len(dense)]), strict=True))
        self._groups = others[len(dense) :].copy()

    def check_headers(self) -> None:
        """And tensors that are settings. Raises StoreFormatError, StoreReadError."""
        for span in self._headers:
            self._check(*span, "header")
        settings = set(self._tensors) - {found.tensor.name for found in self._source.model.places.values()}
        for name in settings:
            self._check(*self._tensors[name], f"tensor '{name}'")

    def check_dense(self, name: str) -> None:
        """What a tensor of the model is made of. Raises StoreFormatError, StoreReadError."""
        tensor = self._source.model.places[name].tensor.name
        if tensor in self._tensors:
            self._check(*self._tensors[tensor], f"tensor '{tensor}'")

    def check_rows(self, name: str, group: int) -> None:
        """16 rows of a table. Raises StoreFormatError, StoreReadError."""
        if len(self._groups):
            tensor, first = self._source.model.places[name].tensor.name, group * TILE_ROWS
            self._check(*_numbers(self._groups[group]), f"rows {first} to {first + TILE_ROWS - 1} of tensor '{tensor}'")

    def verify(self, progress: Progress) -> Verified:
        """Read everything past the page cache. What was known is compared, else it is known from now on. Raises
        StoreFormatError, StoreReadError."""
        spans = self._spans() if self._kept is None else self._kept[1].copy()
        names, total, done = [*self._names()], int(spans["nbytes"].sum()), 0
        for at in np.lexsort((spans["start"], spans["file"])).tolist():
            file, start, nbytes, expected = _numbers(spans[at])
            if self._kept is not None:
                self._check(file, start, nbytes, expected, names[at], again=True)
            else:
                spans["crc32"][at] = self._crc32(file, start, nbytes, again=True)
            done += nbytes
            progress(done, total, names[at])
        return Verified(total, len(spans), (self._note(spans),))

    def _note(self, spans: Spans) -> str:
        if self._kept is not None:
            return f"compared with {self._kept[0]}"
        written = write_spans(self._places, spans)
        if written is None:
            return f"nothing to compare with, and checksums can't be kept at {self._places[-1]}"
        return f"nothing to compare with yet; later reads are compared with {written}"

    def _check(self, file: int, start: int, nbytes: int, expected: int, what: str, again: bool = False) -> None:
        if self._crc32(file, start, nbytes, again) == expected:
            return
        found = self._crc32(file, start, nbytes, again=True)
        if found != expected:
            what = f"checksum of {what}, bytes {start} to {start + nbytes}"
            raise fault(self._source.files[file][0], start, what, f"{expected:08x}", f"{found:08x}", _REMEDY)

    def _crc32(self, file: int, start: int, nbytes: int, again: bool) -> int:
        try:
            return self._source.crc32(file, start, nbytes, again=again)
        except CheckpointError as e:
            raise StoreReadError(str(e)) from e

    def _spans(self) -> Spans:
        """All of them, without checksums."""
        headers = [
            (file, 0, min((tensor.start for tensor in header.tensors.values()), default=header.file_bytes))
            for file, header in enumerate(self._source.headers)
        ]
        dense = [
            (file, tensor.start, tensor.nbytes)
            for file, header in enumerate(self._source.headers)
            for tensor in header.tensors.values()
            if tensor.name not in self._apart
        ]
        groups = [
            (found.file, at, min(nbytes, found.tensor.start + found.tensor.nbytes - at))
            for found in self._tables
            for nbytes in [found.tensor.nbytes // found.tensor.shape[0] * TILE_ROWS]
            for at in range(found.tensor.start, found.tensor.start + found.tensor.nbytes, nbytes)
        ]
        table = np.concatenate(
            [np.array(part, np.int64).reshape(-1, 3) for part in (headers, self._records.spans(), dense, groups)]
        )
        spans = np.zeros(len(table), SPAN)
        spans["file"], spans["start"], spans["nbytes"] = table.T
        return spans

    def _dense_names(self) -> list[str]:
        names = (name for header in self._source.headers for name in header.tensors)
        return [name for name in names if name not in self._apart]

    @cached_property
    def _tables(self) -> list[Found]:
        model = self._source.model
        return [model.places[tensor.name] for tensor in table_tensors(model.config)]

    @cached_property
    def _apart(self) -> set[str]:
        """Tensors of which parts have checksums of their own."""
        return self._records.tensors | {found.tensor.name for found in self._tables}

    def _names(self) -> Iterator[str]:
        yield from ["header"] * len(self._source.files)
        for file, start, _ in self._records.spans().tolist():
            yield self._records.name_at(file, start).removesuffix(": ")
        yield from (f"tensor '{name}'" for name in self._dense_names())
        for found in self._tables:
            yield from [f"tensor '{found.tensor.name}'"] * -(-found.tensor.shape[0] // TILE_ROWS)


def _numbers(span: np.void) -> tuple[int, int, int, int]:
    return int(span["file"]), int(span["start"]), int(span["nbytes"]), int(span["crc32"])
