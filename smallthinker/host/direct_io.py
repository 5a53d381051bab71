"""Reads past the page cache, memory that fits them, and what the page cache holds. Sizes are bytes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import threading
from pathlib import Path

from smallthinker.files import open_fd
from smallthinker.host.libc import libc

DIRECT_ALIGN = 4096  # what direct reads need of file offset, length and memory address, on every common disk


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to a length that direct reads take."""
    return -(-nbytes // DIRECT_ALIGN) * DIRECT_ALIGN


def aligned_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed anonymous memory that starts on a page; the length is rounded up to a multiple of DIRECT_ALIGN.

    A map instead of a bytearray: page-aligned for direct reads, untouched pages cost nothing, freed to the system.
    """
    length = max(whole_pages(nbytes), DIRECT_ALIGN)
    if sys.platform == "win32":
        return mmap.mmap(-1, length)
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets no huge pages


def address(buffer: memoryview) -> int:
    """Memory address of the first byte of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def open_buffered(path: Path) -> int:
    """A descriptor for ordinary reads through the page cache. Raises OSError, also for what is no ordinary file."""
    return open_fd(path)


def open_direct(path: Path) -> int | None:
    """A descriptor whose reads bypass the page cache; None where that can't be had. Raises OSError for other faults.

    Linux: O_DIRECT. macOS: F_NOCACHE, which needs no alignment. Windows: None, since FILE_FLAG_NO_BUFFERING can't be
    asked for through the C runtime; callers use the buffered way.
    """
    if sys.platform == "linux":
        try:
            return open_fd(path, os.O_DIRECT)
        except OSError as e:
            if e.errno in (errno.EINVAL, errno.ENOTSUP):  # the file system doesn't do direct reads
                return None
            raise
    if sys.platform == "darwin":
        import fcntl

        fd = open_buffered(path)
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return fd
    return None


_seek_lock = threading.Lock()


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Read into `buffer` from file offset `offset`; the count may be short, 0 at the end of the file.

    The GIL is released. Windows has no positioned read: there, seek and read happen under one lock.
    """
    if sys.platform != "win32":
        return os.preadv(fd, [buffer], offset)
    with _seek_lock, open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        return file.readinto(buffer) or 0


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("nbytes", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):  # counts of pages
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


_SYS_CACHESTAT = 451  # the same number on every architecture


def cached_pages(fd: int, offset: int, nbytes: int) -> int | None:
    """How many pages of these bytes of an ordinary descriptor's file the page cache holds. None where it can't be told:
    before Linux 6.5, and on Windows and macOS.

    Not by a read that mustn't wait (RWF_NOWAIT): that starts to read ahead what isn't there.
    """
    if libc is None:
        return None
    stat = _CacheStat()
    if libc.syscall(_SYS_CACHESTAT, fd, ctypes.byref(_Range(offset, nbytes)), ctypes.byref(stat), 0) != 0:
        return None
    return int(stat.cached)


def is_cached(fd: int, offset: int, nbytes: int) -> bool:
    """Whether the page cache holds all of it, so that reading needs no disk and brings in no page. False where it can't
    be told."""
    first, last = offset // mmap.PAGESIZE, (offset + nbytes - 1) // mmap.PAGESIZE
    return (cached_pages(fd, offset, nbytes) or 0) > last - first


def drop_file_cache(fd: int, offset: int, nbytes: int) -> None:
    """Take these bytes of the file out of the page cache (0 bytes: up to the end). Dirty pages are only scheduled.

    Pages that a read brought in are charged to the process's memory cgroup until they leave the cache.
    macOS and Windows have no such call: the system drops the pages when it needs them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
