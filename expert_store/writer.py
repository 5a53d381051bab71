"""Writes safetensors files as a stream, and stores out of two of them.

Owns the order of writing: header with placeholders, tensors, checksums, sync. Knows nothing about where the bytes of
a tensor come from; whole-or-nothing is `folder`'s, sizes and names are `format`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from smallthinker import _storage, host
from smallthinker.errors import StoreWriteError
from smallthinker.expert_store.compression import Compressor
from smallthinker.expert_store.folder import AtomicFolder
from smallthinker.expert_store.format import (
    ALL_FILES,
    DENSE_FILE,
    EXPERTS_FILE,
    MANIFEST_FILE,
    TENSOR_ALIGN,
    Formats,
    TensorSpec,
    dense_file_table,
    encode_store_header,
    expert_table,
)
from smallthinker.expert_store.manifest import Entry, encode_manifest, entry_of
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.models.description import Model

Bytes = bytes | memoryview  # of a numpy array: its `.data`

DROP_EVERY_BYTES = 32 << 20  # written pages leave the cache in steps of this; they count towards a memory cgroup


class TensorFileWriter:
    """One safetensors file: tensors of known sizes, written in the order of `tensors`, (name, bytes) each.

    `make_header` builds the header from the tensors' checksums (first all zero) and sizes and must return the same
    length. With `can_shrink`, a tensor is as large as what is written of it, at most its size in `tensors`.
    """

    def __init__(
        self,
        path: Path,
        tensors: list[tuple[str, int]],
        make_header: Callable[[list[int], list[int]], bytes],
        can_shrink: bool = False,
    ) -> None:
        self._tensors = tensors
        self._make_header = make_header
        self._can_shrink = can_shrink
        self._crcs: list[int] = []
        self._sizes: list[int] = []
        self._file = path.open("xb", buffering=0)
        self._dropped = 0
        header = make_header([0] * len(tensors), [nbytes for _, nbytes in tensors])
        self._header_bytes = len(header)
        self._put(header)

    def write(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Write the next tensor, which must be `name`; zeros are added up to its size, unless it can shrink.

        Raises ValueError when the caller's order or sizes contradict the table, OSError.
        """
        expected, nbytes = self._tensors[len(self._crcs)]
        if name != expected:
            raise ValueError(f"expected tensor {expected}, found {name}")
        crc = written = 0
        for piece in pieces:
            data = memoryview(piece).cast("B")
            written += len(data)
            if written > nbytes:
                raise ValueError(f"{name}: expected {nbytes} bytes, found more")
            crc = _storage.crc32(data, crc)
            self._put(data)
        padding = bytes(0 if self._can_shrink else nbytes - written)
        self._put(padding)
        self._crcs.append(_storage.crc32(padding, crc))
        self._sizes.append(written + len(padding))

    def finish(self) -> None:
        """Write checksums and sizes and sync the file. Raises ValueError when a tensor is missing."""
        if len(self._crcs) != len(self._tensors):
            raise ValueError(f"expected tensor {self._tensors[len(self._crcs)][0]}, found the end")
        header = self._make_header(self._crcs, self._sizes)
        assert len(header) == self._header_bytes
        self._end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._put(header)
        self.entry = Entry(self._end, len(header), _storage.crc32(header))
        os.fsync(self._file.fileno())
        host.drop_file_cache(self._file.fileno(), 0, 0)
        self.close()

    def close(self) -> None:
        self._file.close()

    def _put(self, data: Bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        position = self._file.tell()
        if position - self._dropped >= DROP_EVERY_BYTES:
            # From the start: the first call schedules dirty pages, a later one drops them. No sync, no waiting here.
            host.drop_file_cache(self._file.fileno(), 0, position)
            self._dropped = position


class StoreWriter:
    """Context manager that writes a store: every tensor of `dense_file_table`, then every record of `expert_table`.

    `files` are the small files by name, config.json and tokenizer.json among them. Leaving the block without an
    exception publishes the store at `out`; anything else leaves what was there before. `compress` is the level that
    experts are compressed with; room for them uncompressed is asked of the disk all the same. `inputs`: what is read.
    `source`: what the store is made of, for people.
    Raises StoreWriteError: `out` exists without `force`, disk full, no permission; ConfigError for a level.
    """

    def __init__(
        self,
        out: Path,
        config: Model,
        formats: Formats,
        files: Mapping[str, bytes],
        force: bool = False,
        progress: Progress | None = None,
        engine_version: str | None = None,
        compress: int | None = None,
        inputs: Collection[Path] = (),
        source: str = "",
    ) -> None:
        self._source = source
        self._formats = formats
        self._compressor = None if compress is None else Compressor(formats.quant, compress)
        self._files = dict(files)
        self._version = engine_version or installed_version()
        self._progress = progress or silent
        self.dense_specs = tuple(dense_file_table(config, formats))
        self.expert_specs = tuple(expert_table(config, formats))
        self.total_bytes = sum(spec.nbytes for spec in (*self.dense_specs, *self.expert_specs))
        self._done_bytes = 0
        headers = sum(len(self._header(specs, [0] * len(specs))) for specs in (self.dense_specs, self.expert_specs))
        needed = self.total_bytes + headers + sum(map(len, self._files.values()))
        self._folder = AtomicFolder(out, needed, ALL_FILES, force, inputs)
        self._writers: dict[str, TensorFileWriter] = {}

    def __enter__(self) -> StoreWriter:
        self._folder.__enter__()
        try:
            for name, content in self._files.items():
                write_synced(self._folder.temporary / name, content)
            for name, specs in ((DENSE_FILE, self.dense_specs), (EXPERTS_FILE, self.expert_specs)):
                tensors = [(spec.name, spec.nbytes) for spec in specs]
                is_compressed = self._compressor is not None and name == EXPERTS_FILE
                self._writers[name] = TensorFileWriter(
                    self._folder.temporary / name,
                    tensors,
                    partial(self._compressed_header if is_compressed else self._header, specs),
                    can_shrink=is_compressed,
                )
        except BaseException as e:
            self.__exit__(type(e), e, e.__traceback__)
            if isinstance(e, OSError):
                raise self._folder.error(e) from e
            raise
        return self

    def write_dense(self, spec: TensorSpec, pieces: Iterable[Bytes]) -> None:
        """Write the next tensor of dense.safetensors; the pieces of a table are whole groups of 16 rows. Raises
        StoreWriteError; errors of `pieces` pass through."""
        self._write(DENSE_FILE, spec, _with_sums(pieces, spec.group_bytes) if spec.is_table else pieces)

    def write_expert(self, spec: TensorSpec, pieces: Iterable[Bytes]) -> None:
        """Write the next record of experts.safetensors; compressed, it is in memory whole."""
        self._write(EXPERTS_FILE, spec, pieces, self._compressor)

    def _write(
        self, file: str, spec: TensorSpec, pieces: Iterable[Bytes], compressor: Compressor | None = None
    ) -> None:
        pieces = self._counted(spec.name, pieces)
        try:
            if compressor is not None:
                record = b"".join(pieces).ljust(spec.nbytes, b"\0")
                pieces = [compressor.stored(np.frombuffer(record, np.uint8))]
            self._writers[file].write(spec.name, pieces)
        except StoreWriteError:
            raise
        except OSError as e:
            raise self._folder.error(e) from e

    def _counted(self, what: str, pieces: Iterable[Bytes]) -> Iterable[Bytes]:
        for piece in pieces:
            yield piece
            self._done_bytes += memoryview(piece).nbytes
            self._progress(self._done_bytes, self.total_bytes, what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for writer in self._writers.values():
                    writer.finish()
                entries = {name: entry_of(content) for name, content in self._files.items()}
                entries |= {name: writer.entry for name, writer in self._writers.items()}
                manifest = encode_manifest(entries, self._version, self._source)
                write_synced(self._folder.temporary / MANIFEST_FILE, manifest)
        except BaseException as e:
            self._abandon(e)
            if isinstance(e, OSError):
                raise self._folder.error(e) from e
            raise
        if error is not None:
            self._abandon(error)
            return
        self._folder.__exit__(None, None, None)
        self._progress(self.total_bytes, self.total_bytes, "done")

    def _abandon(self, error: BaseException) -> None:
        for writer in self._writers.values():
            writer.close()
        self._folder.__exit__(type(error), error, None)

    def _header(self, specs: tuple[TensorSpec, ...], crcs: list[int], sizes: Sequence[int] = ()) -> bytes:
        return encode_store_header(specs, self._formats, self._version, crcs)

    def _compressed_header(self, specs: tuple[TensorSpec, ...], crcs: list[int], sizes: list[int]) -> bytes:
        return encode_store_header(specs, self._formats, self._version, crcs, sizes)


def _with_sums(pieces: Iterable[Bytes], group_bytes: int) -> Iterator[Bytes]:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for at in range(0, len(view), group_bytes):
            group = view[at : at + group_bytes]
            yield group
            yield _storage.crc32(group).to_bytes(TENSOR_ALIGN, "little")


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file and sync it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def installed_version() -> str:
    """Version of this package, for the files it writes."""
    from importlib.metadata import PackageNotFoundError, version  # 10 ms

    try:
        return version("smallthinker")
    except PackageNotFoundError:
        return "unknown"
