"""Files of weights that are read once, a piece at a time, and leave nothing in the page cache.

Knows nothing about what is in them: a checkpoint has checked every offset that it asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import _storage, host
from smallthinker.errors import CheckpointError

_PIECE_BYTES = 1 << 20  # of what is read only to be added up


class WeightFiles:
    """Opened files. Raises CheckpointError when one can't be opened."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[Path, int] = {}
        try:
            for path in paths:
                self._files[path] = host.open_buffered(path)
        except OSError as e:
            self.close()
            raise CheckpointError(f"{e.filename}: cannot open: {e.strerror}") from e

    def read(self, path: Path, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """uint8 [nbytes]. Raises CheckpointError when the file can't be read or has become shorter."""
        return self.read_rows(path, offset, 1, nbytes, 0, nbytes).reshape(-1)

    def read_rows(
        self, path: Path, offset: int, rows: int, row_bytes: int, start: int, stop: int
    ) -> npt.NDArray[np.uint8]:
        """Bytes start..stop of each row, uint8 [rows, stop - start]; the first row is at `offset`."""
        if 2 * (stop - start) > row_bytes:  # rows as they lie: one read, not one for each
            whole = np.empty((rows, row_bytes), np.uint8)
            self._fill(path, offset, whole.reshape(-1))
            found = np.ascontiguousarray(whole[:, start:stop])
        else:
            found = np.empty((rows, stop - start), np.uint8)
            for row in range(rows):
                self._fill(path, offset + row * row_bytes + start, found[row])
        host.drop_file_cache(self._files[path], offset, rows * row_bytes)
        return found

    def crc32(self, path: Path, offset: int, nbytes: int, *, again: bool = False) -> int:
        """Of so many bytes, which the page cache then may have. again: of what the disk has. Raises as `read`."""
        fd, crc = self._files[path], 0
        if again:
            host.drop_file_cache(fd, offset, nbytes)
        buffer = np.empty(min(nbytes, _PIECE_BYTES), np.uint8)
        for at in range(offset, offset + nbytes, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, offset + nbytes - at)]
            self._fill(path, at, piece)
            crc = _storage.crc32(piece, crc)
            if again:
                host.drop_file_cache(fd, at, len(piece))
        return crc

    def drop_cached(self) -> None:
        """Take all of the files out of the page cache: what was read ahead, too, and headers that others read."""
        for fd in self._files.values():
            host.drop_file_cache(fd, 0, 0)

    def _fill(self, path: Path, offset: int, raw: npt.NDArray[np.uint8]) -> None:
        buffer, done = memoryview(raw.data), 0
        while done < raw.nbytes:
            try:
                count = host.read_at(self._files[path], buffer[done:], offset + done)
            except OSError as e:
                raise CheckpointError(f"{path}: byte {offset + done}: cannot read: {e.strerror or e}") from e
            if count == 0:
                raise CheckpointError(f"{path}: byte {offset + done}: the file was cut short after it was opened")
            done += count

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
