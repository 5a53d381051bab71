"""Anonymous memory by its pages: huge ones asked for, there before they are touched, given back in part.

Linux has all of it; elsewhere memory is what it is, and each function says what happens then. Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

from smallthinker import host
from smallthinker.host.libc import libc

HUGE_PAGE_BYTES = 2 << 20
_MADV_COLD, _MADV_POPULATE_WRITE = 20, 23


def weights_buffer(nbytes: int) -> mmap.mmap:
    """As `host.aligned_buffer`, in huge pages where the system has some."""
    buffer = host.aligned_buffer(nbytes)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def huge_pages_in(start: int, nbytes: int) -> Sequence[int]:
    """Addresses of the whole huge pages in this memory, in order."""
    size = HUGE_PAGE_BYTES
    return range(-(-start // size) * size, start + nbytes - size + 1, size)


def populate(start: int, nbytes: int) -> bool:
    """Have these whole pages of a buffer before they are touched. What was touched already stays as it is, and others
    may read and write meanwhile. False where that can't be had: before Linux 5.14, and on Windows and macOS."""
    return libc is not None and _advise(start, start + nbytes, _MADV_POPULATE_WRITE)


def touched_buffer(nbytes: int) -> mmap.mmap:
    """As `weights_buffer`, to measure with: touched already, since a first touch is dear and not what is measured."""
    buffer = weights_buffer(nbytes)
    for at in range(0, len(buffer), host.DIRECT_ALIGN):
        buffer[at] = 0
    return buffer


def has_huge_pages() -> bool | None:
    """Whether memory that asks for huge pages gets some; None where that can't be found out."""
    try:
        buffer = touched_buffer(3 * HUGE_PAGE_BYTES)  # holds at least one whole one, wherever it starts
        first = host.address(memoryview(buffer))
        found, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            name, *rest = line.split()
            if "-" in name and not name.endswith(":"):
                start, end = (int(part, 16) for part in name.split("-"))
                inside = start < first + len(buffer) and first < end
            elif inside and name == "AnonHugePages:":
                found += int(rest[0])
        return found > 0
    except (OSError, ValueError):
        return None


def discard(start: int, nbytes: int) -> None:
    """Give the whole pages inside this private anonymous memory to the system; they read as zero afterwards.

    Linux only: elsewhere the memory stays with the process.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform != "linux" or end <= first:
        return
    # Else the system may make the huge pages at both ends whole again, some time later.
    outer = first // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, -(-end // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    _advise(*outer, mmap.MADV_NOHUGEPAGE)
    _advise(first, end, _MADV_COLD)  # splits them: of a whole one, no part is freed
    _advise(first, end, mmap.MADV_DONTNEED)


def allow_huge(start: int, nbytes: int) -> None:
    """Memory that was discarded is used again, and may lie in huge pages. Linux only."""
    if sys.platform == "linux":
        _advise(start // mmap.PAGESIZE * mmap.PAGESIZE, start + nbytes, mmap.MADV_HUGEPAGE)


def _advise(start: int, end: int, advice: int) -> bool:
    assert libc is not None
    return bool(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice) == 0)


def transparent_huge_pages() -> str | None:
    """Linux's setting: always, madvise or never. None elsewhere."""
    with contextlib.suppress(OSError, IndexError):
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()  # "always [madvise] never"
        return setting.split("[")[1].split("]")[0]
    return None
