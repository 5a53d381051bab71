"""A store: a folder of the engine's own files, whose weights lie as the kernels read them (docs/format.md).

Owns opening and checking the folder, and its checksums. Knows nothing about how experts are read.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallthinker import _storage, host
from smallthinker.demo import refuse_missing_demo
from smallthinker.errors import StoreFormatError, StoreReadError, one_line
from smallthinker.expert_store.device.pacing import SequentialThrottle
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.format import (
    COMPRESSION,
    CONFIG_FILE,
    DENSE_FILE,
    EXPERTS_FILE,
    FORMAT_NAME,
    MANIFEST_FILE,
    REQUIRED_FILES,
    TENSOR_ALIGN,
    TILE_ROWS,
    StoredTensor,
    StoreFile,
    TensorSpec,
    read_store_file,
)
from smallthinker.expert_store.header import fault
from smallthinker.expert_store.manifest import check_files, read_manifest
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.records import Records, Stage, Sums
from smallthinker.expert_store.store import Store, Verified
from smallthinker.files import SmallFiles, is_folder, is_there, open_regular, write_hint
from smallthinker.host import pages
from smallthinker.models.description import Model
from smallthinker.models.registry import read_model
from smallthinker.models.tensors import ROUTER

_MAX_CONFIG_BYTES = 1 << 20
_PIECE_BYTES = 4 << 20  # one read of dense weights or of a verification
_REMEDY = "the file changed since it was written, or the disk fails: check the disk, copy or convert it again"


class FolderStore(Store):
    """dense_file, experts_file: the checked files."""

    def __init__(self, path: Path, config: Model, dense: StoreFile, experts: StoreFile) -> None:
        super().__init__(path, config, experts.formats)
        self.dense_file, self.experts_file = dense, experts
        self.kind, self.engine_version = f"{FORMAT_NAME} {experts.format_version}", experts.engine_version
        self.is_compressed = experts.is_compressed
        self.num_compressed = sum(tensor.is_compressed for tensor in experts.tensors)
        self.on_disk_bytes = experts.file_bytes - experts.data_start
        self.small_files, self.weight_files = SmallFiles(path), (experts.path,)
        self._table_file: _Sequential | None = None

    @classmethod
    def opened(cls, path: Path) -> FolderStore:
        """As `Store.open`."""
        try:
            _check_folder(path)
            config_bytes = (path / CONFIG_FILE).stat().st_size
            if config_bytes > _MAX_CONFIG_BYTES:
                raise fault(path / CONFIG_FILE, 0, "size", f"at most {_MAX_CONFIG_BYTES} bytes", config_bytes)
            config = read_model(path / CONFIG_FILE, in_store=True)
            dense = read_store_file(path / DENSE_FILE, "dense", config)
            experts = read_store_file(path / EXPERTS_FILE, "experts", config)
        except OSError as e:
            raise StoreReadError(f"{e.filename or path}: cannot read the store: {e.strerror or e}") from e
        if dense.formats != experts.formats:
            expected, found = f"{experts.formats} as in {EXPERTS_FILE}", one_line(dense.formats)
            raise fault(dense.path, 8, "__metadata__ quant", one_line(expected), found)
        return cls(path, config, dense, experts)

    def close(self) -> None:
        super().close()
        if self._table_file is not None:
            self._table_file.close()
            self._table_file = None

    def record_offset(self, index: int) -> int:
        """Where record `index` starts in experts.safetensors, bytes; a multiple of 4096. Raises IndexError."""
        return self._record(index).offset

    def stored_bytes(self, index: int) -> int:
        """What record `index` takes in experts.safetensors, a multiple of 4096: `record_bytes` of a record that lies
        there as it is, less of a compressed one. Raises IndexError."""
        return self._record(index).nbytes

    def _record(self, index: int) -> StoredTensor:
        if not 0 <= index < self.num_experts:
            raise IndexError(f"record {index}: the store has {self.num_experts}")
        return self.experts_file.tensors[index]

    def records(self, chunk_bytes: int) -> Records:
        if not self.is_compressed:
            return replace(self.plain_records(), name_at=self._name_at, sums=self._sums())
        from smallthinker.expert_store.compression import Unpacker, decompressor_bytes  # and zstandard

        file, most = self.experts_file, max(tensor.nbytes for tensor in self.experts_file.tensors)
        offsets = [tensor.offset for tensor in file.tensors]
        unpack = Unpacker(self.quant, self.record_bytes)
        stage = Stage(unpack, COMPRESSION, most + decompressor_bytes(self.quant, self.record_bytes))
        ends = [*offsets, offsets[-1] + file.tensors[-1].nbytes]
        whole = Records.whole(file.path, file.file_bytes, self.record_bytes, ends, stage)
        return replace(whole, name_at=self._name_at, sums=self._sums())

    def _sums(self) -> Sums:
        """A record is one piece."""
        expected = np.fromiter((tensor.crc32 for tensor in self.experts_file.tensors), np.uint32)
        return Sums(np.arange(len(expected) + 1, dtype=np.int64), expected)

    def _name_at(self, file: int, offset: int) -> str:
        tensors = self.experts_file.tensors
        at = bisect_right(tensors, offset, key=lambda tensor: tensor.offset) - 1
        return f"{tensors[at].spec.name}: " if at >= 0 else ""

    def plain_records(self) -> Records:
        file = self.experts_file
        return Records.in_turn(file.path, file.file_bytes, file.tensors[0].offset, self.record_bytes, self.num_experts)

    def identity(self) -> str:
        stored = (*self.dense_file.tensors, *self.experts_file.tensors)
        return "".join(f"{tensor.spec.name} {tensor.crc32} " for tensor in stored)

    def router_checksums(self) -> list[int]:
        return [tensor.crc32 for tensor in self.dense_file.tensors if tensor.spec.name.endswith(f".{ROUTER}")]

    def hint_path(self, name: str) -> Path:
        return self.path / name

    def write_hint(self, name: str, data: bytes) -> bool:
        return write_hint(self.path / name, data)

    def check_small_files(self) -> None:
        self._unchecked()

    def _unchecked(self) -> list[str]:
        """What the manifest can't vouch for."""
        entries = read_manifest(self.path)
        if entries is None:
            return [f"{self.path}: has no {MANIFEST_FILE}, so its small files are unchecked"]
        edited = check_files(self.path, entries)
        return [f"{self.path / name}: was edited since the store was made" for name in edited]

    def verify(self, progress: Progress | None = None) -> Verified:
        progress = progress or silent
        notes = tuple(self._unchecked())
        total = self.dense_file.file_bytes + self.experts_file.file_bytes
        done = 0
        for file in (self.dense_file, self.experts_file):
            with _Sequential(file) as source:
                for tensor in file.tensors:
                    crc = _crc32(source, tensor)
                    if crc != tensor.crc32:
                        raise _wrong(file, tensor, crc)
                    progress(done + tensor.offset + tensor.nbytes, total, tensor.spec.name)
            done += file.file_bytes
        return Verified(total, len(self.dense_file.tensors) + len(self.experts_file.tensors), notes)

    def _load_dense(
        self,
        mode: Literal["anonymous", "mapped"],
        progress: Progress,
        storage: StorageProfile | None,
        reserved: Callable[[npt.NDArray[np.uint8]], None],
        verify: bool,
    ) -> npt.NDArray[np.uint8]:
        return self._map_dense() if mode == "mapped" else self._read_dense(progress, storage, reserved, verify)

    def _read_dense(
        self,
        progress: Progress,
        storage: StorageProfile | None,
        reserved: Callable[[npt.NDArray[np.uint8]], None],
        verify: bool,
    ) -> npt.NDArray[np.uint8]:
        throttle = None if storage is None else SequentialThrottle(storage)
        memory = pages.weights_buffer(self.dense_bytes)
        reserved(self._frozen(memory))
        view = memoryview(memory)
        with _Sequential(self.dense_file, from_cache=True) as source:
            for start in range(0, self.dense_bytes, _PIECE_BYTES):
                # whole pages for direct reads: the last piece may ask for more than the file has
                piece = view[start : start + _PIECE_BYTES]
                wanted = min(len(piece), self.dense_bytes - start)
                source.read(self.dense_file.data_start + start, piece, wanted)
                if throttle is not None:
                    throttle.arrived(wanted)
                progress(start + wanted, self.dense_bytes, DENSE_FILE)
        if verify:
            self._check_dense(view)
        return self._frozen(memory)

    def _table_rows(self, spec: TensorSpec, group: int) -> npt.NDArray[np.uint8]:
        nbytes = spec.group_bytes + TENSOR_ALIGN
        if self._table_file is None:
            self._table_file = _Sequential(self.dense_file, buffer_bytes=host.whole_pages(nbytes) + host.DIRECT_ALIGN)
        source, start = self._table_file, next(t.offset for t in self.dense_file.tensors if t.spec.name == spec.name)
        offset = start + group * nbytes
        skip = offset % host.DIRECT_ALIGN
        for _ in range(2 if self._verifies else 1):  # what isn't what its checksum says is read once more
            source.read(offset - skip, source.buffer[: host.whole_pages(skip + nbytes)], skip + nbytes)
            found = np.array(source.buffer[skip : skip + nbytes])
            rows, crc = found[: spec.group_bytes], int(found[spec.group_bytes :][:4].view("<u4")[0])
            if not self._verifies or _storage.crc32(rows.data) == crc:
                return rows
        first = group * TILE_ROWS
        what = f"checksum of rows {first} to {first + TILE_ROWS - 1} of tensor '{spec.name}'"
        raise StoreReadError(
            str(fault(source.path, offset, what, f"{crc:08x}", f"{_storage.crc32(rows.data):08x}", _REMEDY))
        )

    def _check_dense(self, memory: memoryview) -> None:
        """What isn't what its checksum says is read once more from the disk itself. Raises StoreReadError."""
        file = self.dense_file
        for tensor in file.tensors[: len(self._dense_specs)]:
            start = tensor.offset - file.data_start
            view = memory[start : start + tensor.nbytes]
            if _storage.crc32(view) == tensor.crc32:
                continue
            with _Sequential(file, drop=True) as source:
                crc = _crc32(source, tensor, view)
            if crc != tensor.crc32:
                raise StoreReadError(str(_wrong(file, tensor, crc)))

    def _map_dense(self) -> npt.NDArray[np.uint8]:
        path, expected = self.dense_file.path, self.dense_file.file_bytes
        try:
            with open_regular(path) as file:
                found = file.seek(0, 2)
                if found != expected:  # a map longer than its file would end the process at the first touch
                    raise StoreReadError(f"{path}: expected {expected} bytes, found {found}; it changed since opening")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise e if isinstance(e, StoreReadError) else _read_error(path, 0, e) from e
        return self._frozen(mapped, self.dense_file.data_start)

    def _frozen(self, memory: mmap.mmap, start: int = 0) -> npt.NDArray[np.uint8]:
        array = np.frombuffer(memory, np.uint8, self.dense_bytes, start)
        array.flags.writeable = False
        return array


class _Sequential:
    """Reads a file once through, past the page cache where possible, else dropping behind.

    `from_cache` takes what the page cache holds anyway from there, and leaves it there; `drop` lets it hold nothing of
    the file before.
    """

    def __init__(
        self, file: StoreFile, from_cache: bool = False, drop: bool = False, buffer_bytes: int = _PIECE_BYTES
    ) -> None:
        self.path = file.path
        self._fd = self._cached_fd = -1
        try:
            direct = host.open_direct(file.path)
            self._fd = host.open_buffered(file.path) if direct is None else direct
            if drop:
                host.drop_file_cache(self._fd, 0, 0)
            self._cached_fd = host.open_buffered(file.path) if from_cache else -1
        except OSError as e:
            self.close()
            raise _read_error(file.path, 0, e) from e
        self.buffer = memoryview(host.aligned_buffer(buffer_bytes))

    def __enter__(self) -> _Sequential:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in (self._fd, self._cached_fd):
            if fd >= 0:
                os.close(fd)

    def read(self, offset: int, into: memoryview, wanted: int) -> None:
        """Read at least `wanted` bytes; offset, length and address of `into` fit direct reads. StoreReadError."""
        done = 0
        is_cached = self._cached_fd >= 0 and host.is_cached(self._cached_fd, offset, wanted)
        fd = self._cached_fd if is_cached else self._fd
        while done < wanted:
            done -= done % host.DIRECT_ALIGN  # after a short read, go on from a place that direct reads can start at
            try:
                count = host.read_at(fd, into[done:], offset + done)
            except OSError as e:
                raise _read_error(self.path, offset + done, e) from e
            if count == 0 or (done + count < wanted and count < host.DIRECT_ALIGN):
                raise StoreReadError(
                    f"{self.path}: byte {offset + done}: expected {wanted - done} more bytes, found {count}: the file "
                    f"was cut short after it was opened; copy or convert it again"
                )
            done += count
        if not is_cached:
            host.drop_file_cache(self._fd, offset, len(into))


def _wrong(file: StoreFile, tensor: StoredTensor, crc: int) -> StoreFormatError:
    name = f"checksum of tensor '{tensor.spec.name}', bytes {tensor.offset} to {tensor.offset + tensor.nbytes}"
    return fault(file.path, tensor.offset, name, f"{tensor.crc32:08x}", f"{crc:08x}", _REMEDY)


def _crc32(source: _Sequential, tensor: StoredTensor, into: memoryview | None = None) -> int:
    """into: gets what is read, too."""
    crc, position, stop = 0, tensor.offset, tensor.offset + tensor.nbytes
    while position < stop:
        skip = position % host.DIRECT_ALIGN  # dense tensors start on cache lines, reads on pages
        wanted = min(len(source.buffer), skip + stop - position)
        source.read(position - skip, source.buffer[: host.whole_pages(wanted)], wanted)
        crc = _storage.crc32(source.buffer[skip:wanted], crc)
        if into is not None:
            into[position - tensor.offset :][: wanted - skip] = source.buffer[skip:wanted]
        position += wanted - skip
    return crc


def _check_folder(path: Path) -> None:
    if not is_folder(path):
        refuse_missing_demo(path)
        found = "a file" if is_there(path) else "nothing"
        raise StoreFormatError(
            f"{path}: expected a store (a folder), found {found}; give the folder that was converted"
        )
    missing = [name for name in REQUIRED_FILES if not (path / name).exists()]
    if not missing:
        return
    remedy = "copy or convert it again"
    if any(path.glob("model*.safetensors")) and DENSE_FILE in missing:
        remedy = "this is a Hugging Face checkpoint: convert it first"
    elif len(missing) == len(REQUIRED_FILES):
        raise StoreFormatError(f"{path}: a folder without a model; give a store's folder or a .gguf file")
    raise StoreFormatError(f"{path}: not a whole store: {', '.join(missing)} missing; {remedy}")


def _read_error(path: Path, offset: int, e: OSError) -> StoreReadError:
    return StoreReadError(f"{path}: byte {offset}: cannot read: {e.strerror or e}")
