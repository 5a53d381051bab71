"""Reads matrices from a file that torch.save wrote, without torch and without running anything in it.

Such a file is a zip archive: `NAME/data.pkl` is a pickle that says which tensors there are (`torch_pickle`),
`NAME/data/KEY` are their numbers. Knows nothing about what the matrices are for.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.errors import CheckpointError
from smallthinker.expert_store.header import ITEM_BYTES, MAX_FILE_BYTES
from smallthinker.expert_store.sources.checkpoint import to_float32
from smallthinker.expert_store.sources.torch_pickle import STORAGE_DTYPES, Name, PickledTensor, RefusedError, build
from smallthinker.files import open_fd

_MOST_READ_BYTES = 1 << 20  # at once; also bounds the archive's directory, which zipfile reads whole
_MOST_PICKLE_BYTES = 1 << 16
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch before 1.6 wrote, and could be told to later

# What zipfile and pickletools raise for broken bytes, found by fuzzing and by reading them.
_BROKEN = (
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
)


class Matrix(NamedTuple):
    """Where a matrix's numbers lie: `start` bytes into an archive member, row by row."""

    member: str
    dtype: str
    shape: tuple[int, int]
    start: int


class TorchFile:
    """A file's state dict of matrices; context manager. `matrices` is checked against the sizes of the archive.

    Raises CheckpointError, with the path: not such a file, damaged, or more than a dict of f32, f16 or bf16 matrices.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = _BoundedFile(self.path)
        except OSError as e:
            raise CheckpointError(f"{self.path}: cannot open: {e.strerror or e}") from e
        try:
            with _faults(self.path):
                if self._file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
                    raise RefusedError(
                        "a file in torch's format from before 1.6; load it with torch and torch.save it again"
                    )
                self._zip = zipfile.ZipFile(self._file)
                self.matrices = {name: self._matrix(name, value) for name, value in self._state_dict().items()}
        except BaseException:
            self._file.close()
            raise

    def strips(self, name: str, rows: int) -> Iterator[npt.NDArray[np.float32]]:
        """The matrix from its first row to its last, `rows` rows at a time, as float32.

        Leaves nothing in the page cache. Raises CheckpointError when the file ends early or its checksum is wrong.
        """
        matrix = self.matrices[name]
        row_bytes = matrix.shape[1] * ITEM_BYTES[matrix.dtype]
        with _faults(self.path), self._zip.open(matrix.member) as member:
            for skipped in range(0, matrix.start, _MOST_READ_BYTES):
                member.read(min(_MOST_READ_BYTES, matrix.start - skipped))
            for first in range(0, matrix.shape[0], rows):
                count = min(rows, matrix.shape[0] - first)
                raw = np.frombuffer(self._take(member, count * row_bytes), np.uint8)
                yield to_float32(raw, matrix.dtype).reshape(count, matrix.shape[1])
                host.drop_file_cache(self._file.fileno(), 0, 0)
            while member.read(_MOST_READ_BYTES):  # to the end, where zipfile compares the checksum
                pass

    def _take(self, member: Any, nbytes: int) -> bytearray:
        taken = bytearray()
        while len(taken) < nbytes:
            piece = member.read(min(nbytes - len(taken), _MOST_READ_BYTES))
            if not piece:
                raise RefusedError("a file that ends early; copy or download it again")
            taken += piece
        return taken

    def _state_dict(self) -> dict[str, Any]:
        pickles = [info for info in self._zip.infolist() if info.filename.count("/") == 1]
        pickles = [info for info in pickles if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedError(f"{len(pickles)} members named */data.pkl; expected one, as torch.save writes it")
        self._folder = pickles[0].filename.removesuffix("data.pkl")
        order = self._folder + "byteorder"
        if order in self._zip.namelist() and self._member(order, 6) != b"little":
            raise RefusedError("numbers in big-endian order; save it on a little-endian machine")
        state = build(self._member(pickles[0].filename, _MOST_PICKLE_BYTES))
        if not isinstance(state, dict):
            raise RefusedError("something other than a dict of tensors; save the module's state_dict()")
        return state

    def _member(self, name: str, most_bytes: int) -> bytes:
        info = self._plain(name)
        if info.file_size > most_bytes:
            raise RefusedError(f"a member {name[:80]!r} of {info.file_size} bytes; expected at most {most_bytes}")
        return self._zip.read(info)

    def _plain(self, name: str) -> zipfile.ZipInfo:
        """A member that is stored as it is: torch compresses nothing, and what doesn't grow is no zip bomb."""
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise RefusedError(f"no member {name[:80]!r}; copy or download it again") from None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise RefusedError(f"a compressed member {name[:80]!r}; expected it stored, as torch.save writes it")
        if info.header_offset + info.file_size > self._file.nbytes:
            raise RefusedError(f"a member {name[:80]!r} that reaches past the file's end; copy or download it again")
        return info

    def _matrix(self, name: str, value: Any) -> Matrix:
        what = f"tensor {name[:80]!r}"
        if not isinstance(value, PickledTensor) or not isinstance(value.storage, tuple) or len(value.storage) != 5:
            raise RefusedError(f"{what} that is not a tensor; save the module's state_dict()")
        kind, storage, key, _, numel = value.storage
        if kind != "storage" or not isinstance(storage, Name) or storage.text not in STORAGE_DTYPES:
            raise RefusedError(f"{what} of a type that is not float32, float16 or bfloat16")
        if not _sizes(value.shape) or len(value.shape) != 2:
            raise RefusedError(f"{what} that is not a matrix")
        dtype, (rows, cols) = STORAGE_DTYPES[storage.text], value.shape
        if not _sizes((value.offset, numel)) or value.offset + rows * cols > numel:
            raise RefusedError(f"{what} [{rows}, {cols}] that its storage can't hold")
        if value.stride != (cols, 1):
            raise RefusedError(f"{what} that is not contiguous; save tensor.contiguous()")
        if not isinstance(key, str) or not key.isalnum():
            raise RefusedError(f"{what} without a storage")
        info = self._plain(f"{self._folder}data/{key}")
        item = ITEM_BYTES[dtype]
        if info.file_size != numel * item:
            raise RefusedError(f"{what} in a storage of {info.file_size} bytes; expected {numel * item}")
        return Matrix(info.filename, dtype, (rows, cols), value.offset * item)

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turns what the checks, zipfile and pickletools raise into one CheckpointError."""
    try:
        yield
    except RefusedError as e:
        raise CheckpointError(f"{path}: expected a state dict written by torch.save, found {e}") from None
    except _BROKEN as e:
        raise CheckpointError(
            f"{path}: expected a zip file written by torch.save, found something else or a damaged one "
            f"({str(e)[:100] or type(e).__name__}); copy or download it again"
        ) from e


class _BoundedFile(io.FileIO):
    """A file that gives no more at once than a well-formed archive has zipfile ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_fd(path))
        self.nbytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.nbytes - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > _MOST_READ_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size) or b""


def _sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and 0 <= v <= MAX_FILE_BYTES for v in values)
