"""Where records lie in files, piece by piece, and what becomes of a piece between the disk and its slot.

Owns the table that the native queue reads by. Knows nothing about models or about reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Stage(NamedTuple):
    """What becomes of a piece between the disk and its slot.

    run: fills the slot from what lies in the file, or raises ValueError; called by several of the queue's own threads.
    Or what a kernel does so without Python: a capsule of `_kernels`. nbytes: its memory for each thread.
    """

    run: Callable[[memoryview, memoryview], None] | Any
    name: str
    nbytes: int = 0


class Sums(NamedTuple):
    """CRC-32 of what lies in the files: of some pieces of one record each. starts: int64 [sums + 1], of each its first
    piece, and behind the last one's the end. expected: uint32 [sums]."""

    starts: npt.NDArray[np.int64]
    expected: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Records:
    """What is read into slots of `record_bytes`.

    files: and their sizes. pieces: int64 [pieces, 4], of each the number of its file, where it begins there, its bytes,
    and what tells the stage what to make of it: without a stage, where in the slot it goes; offsets and lengths are
    multiples of 4096 then, and the queue cuts pieces into chunks. starts: int64 [records + 1], each record's first
    piece, and behind the last one's the end. name_at: what messages about a byte of the n-th file begin with.
    sums: what the pieces are checked by.
    """

    files: tuple[tuple[Path, int], ...]
    record_bytes: int
    pieces: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stage: Stage | None = None
    name_at: Callable[[int, int], str] | None = None
    sums: Sums | None = None

    @classmethod
    def in_turn(cls, path: Path, file_bytes: int, first_offset: int, record_bytes: int, num_records: int) -> Records:
        """Records of one file, one after another, each as its slot wants it."""
        offsets = first_offset + record_bytes * np.arange(num_records + 1, dtype=np.int64)
        return cls.whole(path, file_bytes, record_bytes, offsets)

    @classmethod
    def whole(
        cls,
        path: Path,
        file_bytes: int,
        record_bytes: int,
        offsets: Sequence[int] | npt.NDArray[np.int64],
        stage: Stage | None = None,
    ) -> Records:
        """Records of one file, each a piece. offsets: where they lie, and the end of the last one."""
        begins = np.asarray(offsets, np.int64)
        pieces = np.zeros((len(begins) - 1, 4), np.int64)
        pieces[:, 1], pieces[:, 2] = begins[:-1], np.diff(begins)
        return cls(((path, file_bytes),), record_bytes, pieces, np.arange(len(begins)), stage)

    @property
    def num_records(self) -> int:
        return len(self.starts) - 1

    @property
    def table_bytes(self) -> int:
        """Memory of the table, here and in the queue."""
        sums = 0 if self.sums is None else self.sums.starts.nbytes + 3 * self.sums.expected.nbytes
        return 5 * self.pieces.nbytes // 2 + 2 * self.starts.nbytes + sums

    @property
    def max_piece_bytes(self) -> int:
        return int(self.pieces[:, 2].max(initial=0))
