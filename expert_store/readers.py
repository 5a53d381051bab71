"""Reads expert records into memory that the caller owns: through a map, or directly past the page cache.

Both give the same bytes and leave nothing in the page cache, where it would be charged to the process's memory
cgroup. `auto` times both on this machine. Knows nothing about which experts are wanted or when.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.compression import Decompressor, FrameError, decompressor_bytes
from smallthinker.expert_store.device.pacing import PacedReader
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.format import COMPRESSION
from smallthinker.expert_store.store import Store

ReaderKind = Literal["mmap", "direct", "auto"]

_PROBE_BYTES = 6 << 20  # per reader
_PROBE_SEC = 0.07  # per reader: a slow disk shows after one record
_DIRECT_FAVOUR = 1.1  # within 10 %, direct wins: it leaves the page cache and the page tables alone


class Reader(Protocol):
    """Reads whole records. Methods may be called from several threads at once, except `close`."""

    @property
    def name(self) -> str: ...

    @property
    def bytes_read(self) -> int:
        """Bytes delivered since opening."""

    def read_into(self, index: int, buffer: memoryview) -> None:
        """Fill `buffer` with record `index` (layer * experts per layer + expert).

        buffer: writable, `record_bytes` long, page-aligned (`host.aligned_buffer`, or a slot in one).
        Raises StoreReadError with path and offset, IndexError, ValueError for an unfit buffer.
        """

    def close(self) -> None:
        """Close the file; again, nothing happens."""


class _FileReader:
    """What both readers share: the open file, its size check, the count of bytes. They give records as they lie in the
    file, compressed or not."""

    name = ""

    def __init__(self, store: Store, fd: int) -> None:
        self._store = store
        self._path: Path = store.experts_file.path
        self._fd = fd
        self._lock = threading.Lock()
        self._bytes_read = 0
        try:
            self._check_size(0)
        except StoreReadError:
            self.close()
            raise

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget(self, index: int) -> bool:
        """Take a record out of the page cache, so that reading it is cold. False where the cache keeps it."""
        at = self._store.record_offset(index), self._store.stored_bytes(index)
        host.drop_file_cache(self._fd, *at)
        return not host.is_cached(self._fd, *at)

    def _begin(self, index: int, buffer: memoryview) -> int:
        if self._fd < 0:
            raise StoreReadError(f"{self._path}: the reader is closed")
        offset, nbytes = self._store.record_offset(index), self._store.stored_bytes(index)
        if buffer.readonly or buffer.nbytes != nbytes:
            raise ValueError(f"expected a writable buffer of {nbytes} bytes, found {buffer.nbytes}")
        return offset

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._bytes_read += nbytes

    def _check_size(self, offset: int) -> None:
        expected, found = self._store.experts_file.file_bytes, os.fstat(self._fd).st_size
        if found != expected:
            raise self._error(offset, f"expected a file of {expected} bytes, found {found}: it changed since opening")

    def _error(self, offset: int, what: str) -> StoreReadError:
        return _error(self._path, offset, what)


class MmapReader(_FileReader):
    """Copies records out of a map of the file. The portable reader."""

    name = "mmap"

    def __init__(self, store: Store) -> None:
        """Raises StoreReadError when the file can't be opened or mapped, or changed its size."""
        path = store.experts_file.path
        try:
            super().__init__(store, host.open_buffered(path))
            self._map: mmap.mmap | None = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        except StoreReadError:
            raise
        except OSError as e:
            self.close()
            raise StoreReadError(f"{path}: cannot map: {e.strerror or e}") from e
        self._bytes = np.frombuffer(self._map, np.uint8)

    def read_into(self, index: int, buffer: memoryview) -> None:
        offset = self._begin(index, buffer)
        nbytes = buffer.nbytes
        # A touch behind the end of a file that was cut short kills the process (SIGBUS), so look before each copy.
        self._check_size(offset)
        assert self._map is not None
        host.will_need(self._fd, offset, nbytes)  # one long read instead of a fault per read-ahead window
        # numpy copies with the GIL released; a memoryview or slice copy would hold it through every page fault
        np.copyto(np.frombuffer(buffer, np.uint8), self._bytes[offset : offset + nbytes])
        host.drop_map_pages(self._map, offset, nbytes)  # first the map: mapped pages can't leave the cache
        host.drop_file_cache(self._fd, offset, nbytes)
        self._count(nbytes)

    def close(self) -> None:
        if getattr(self, "_map", None) is not None:
            assert self._map is not None
            del self._bytes
            self._map.close()
            self._map = None
        super().close()


class DirectReader(_FileReader):
    """Reads past the page cache (O_DIRECT on Linux, F_NOCACHE on macOS), straight into the caller's memory."""

    name = "direct"

    def __init__(self, store: Store) -> None:
        """Raises StoreReadError where the file system refuses direct reads, or the file changed its size."""
        path = store.experts_file.path
        try:
            fd = host.open_direct(path)
        except OSError as e:
            raise StoreReadError(f"{path}: cannot open: {e.strerror or e}") from e
        if fd is None:
            raise StoreReadError(f"{path}: this system or file system has no direct reads; use the mmap reader")
        super().__init__(store, fd)
        self._buffered_fd = host.open_buffered(path)
        try:
            # some file systems let us open for direct reads and refuse the first read
            host.read_at(fd, memoryview(host.aligned_buffer(host.DIRECT_ALIGN)), store.record_offset(0))
        except OSError as e:
            self.close()
            raise StoreReadError(f"{path}: direct reads refused ({e.strerror}); use the mmap reader") from e

    def close(self) -> None:
        super().close()
        if getattr(self, "_buffered_fd", -1) >= 0:
            os.close(self._buffered_fd)
            self._buffered_fd = -1

    def read_into(self, index: int, buffer: memoryview) -> None:
        offset = self._begin(index, buffer)
        if host.address(buffer) % host.DIRECT_ALIGN:
            raise ValueError(f"expected a buffer aligned to {host.DIRECT_ALIGN} bytes (host.aligned_buffer)")
        done, nbytes = 0, buffer.nbytes
        # What the page cache holds anyway, say after a copy or a conversion, costs no disk.
        fd = self._buffered_fd if host.is_cached(self._buffered_fd, offset, nbytes) else self._fd
        while done < nbytes:
            try:
                count = host.read_at(fd, buffer[done:], offset + done)
            except OSError as e:
                raise self._error(offset + done, f"cannot read: {e.strerror or e}") from e
            # A short read may end anywhere, the next one must start on a block: read the broken block again.
            count -= count % host.DIRECT_ALIGN
            if count == 0:
                self._check_size(offset + done)
                raise self._error(offset + done, f"expected {nbytes - done} more bytes, found the end of the file")
            done += count
        self._count(nbytes)


class CompressedReader:
    """Decompresses on the thread that read: a record from another reader into memory of this thread, from there into
    the caller's."""

    def __init__(self, store: Store, stored: Reader) -> None:
        self._store, self._stored = store, stored
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._bytes_read = 0

    @property
    def name(self) -> str:
        return f"{self._stored.name}+{COMPRESSION}"

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def read_into(self, index: int, buffer: memoryview) -> None:
        record_bytes, nbytes = self._store.record_bytes, self._store.stored_bytes(index)
        if buffer.readonly or buffer.nbytes != record_bytes:
            raise ValueError(f"expected a writable buffer of {record_bytes} bytes, found {buffer.nbytes}")
        if nbytes == record_bytes:
            self._stored.read_into(index, buffer)
        else:
            own = self._of_thread
            if not hasattr(own, "decompressor"):
                own.memory = memoryview(host.aligned_buffer(self._store.largest_stored_bytes))
                own.decompressor = Decompressor(self._store.quant, record_bytes)
            self._stored.read_into(index, own.memory[:nbytes])
            try:
                own.decompressor.decompress(own.memory[:nbytes], buffer)
            except FrameError as e:
                path, offset = self._store.experts_file.path, self._store.record_offset(index)
                raise _error(path, offset, str(e)) from e
        with self._lock:
            self._bytes_read += record_bytes

    def close(self) -> None:
        self._stored.close()
        self._of_thread = threading.local()


def open_reader(kind: ReaderKind, store: Store, storage: StorageProfile | None = None) -> Reader:
    """Open the reader of that kind. auto: the faster on this machine, by a probe of a few cold records (< 0.2 s).
    storage: a slower device to emulate; decompressing takes its time besides.

    Raises StoreReadError; with auto, only when the map can't be opened either.
    """
    reader: Reader = _open_file_reader(kind, store)
    if storage is not None:
        reader = PacedReader(reader, store, storage)
    return CompressedReader(store, reader) if store.is_compressed else reader


def reading_bytes(store: Store) -> int:
    """The most memory that a reading thread takes beside the caller's buffer, with any reader: the map's pages, until
    they are dropped behind the copy, and what it decompresses from."""
    if not store.is_compressed:
        return store.record_bytes
    return 2 * store.largest_stored_bytes + decompressor_bytes(store.quant, store.record_bytes)


def _open_file_reader(kind: ReaderKind, store: Store) -> Reader:
    if kind == "mmap":
        return MmapReader(store)
    if kind == "direct":
        return DirectReader(store)
    if kind != "auto":
        raise ValueError(f"reader: expected one of mmap, direct, auto, found {kind!r}")
    try:
        direct = DirectReader(store)
    except StoreReadError:
        return MmapReader(store)
    try:
        mapped = MmapReader(store)
    except StoreReadError:
        return direct
    faster, other = (direct, mapped) if _probe(store, direct, mapped) else (mapped, direct)
    other.close()
    return faster


def _probe(store: Store, direct: DirectReader, mapped: MmapReader) -> bool:
    """Whether direct reads are the faster. The records are random, so that no other cache has them from last time."""
    per_reader = max(1, min(_PROBE_BYTES // store.largest_stored_bytes, store.num_experts // 2, 32))
    indices = random.sample(range(store.num_experts), min(2 * per_reader, store.num_experts))
    buffer = memoryview(host.aligned_buffer(store.largest_stored_bytes))
    direct_sec = mapped_sec = 0.0
    rounds = 0
    for a, b in zip(indices[::2], indices[1::2] or indices, strict=False):
        if not (direct.forget(a) and mapped.forget(b)):
            continue  # the page cache is warm and keeps it: that is no measure of the disk
        direct_sec += _read_sec(direct, a, buffer[: store.stored_bytes(a)])
        mapped_sec += _read_sec(mapped, b, buffer[: store.stored_bytes(b)])
        rounds += 1
        if max(direct_sec, mapped_sec) > _PROBE_SEC:
            break
    return rounds == 0 or direct_sec <= mapped_sec * _DIRECT_FAVOUR


def _read_sec(reader: DirectReader | MmapReader, index: int, buffer: memoryview) -> float:
    start = time.perf_counter()
    reader.read_into(index, buffer)
    return time.perf_counter() - start


def _error(path: Path, offset: int, what: str) -> StoreReadError:
    return StoreReadError(f"{path}: byte {offset}: {what}; check the disk, copy or convert the store again")
