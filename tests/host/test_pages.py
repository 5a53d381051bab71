"""Memory by its pages: there before it is touched, free at once when it is given back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker.host import pages


def resident_bytes_of(array: npt.NDArray[np.uint8]) -> int:
    """What the system counts for this map of memory, which has no others beside it."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start < array.ctypes.data + array.nbytes and array.ctypes.data < end
        elif inside and first == "Rss:":
            resident += int(line.split()[1]) << 10
    return resident


def free_bytes() -> int:
    """Of the machine: what a map has no longer, but nobody else can have either, is seen here alone."""
    return int(Path("/proc/meminfo").read_text().split("MemFree:")[1].split()[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere huge pages can't be asked for")
def test_memory_is_there_before_it_is_touched_and_what_was_written_stays() -> None:
    array = np.frombuffer(pages.weights_buffer(8 << 20), np.uint8)
    huge = pages.huge_pages_in(array.ctypes.data, array.nbytes)
    assert len(huge) in (3, 4) and all(page % pages.HUGE_PAGE_BYTES == 0 for page in huge)
    array[huge[0] - array.ctypes.data] = 7
    if not pages.populate(huge[0], pages.HUGE_PAGE_BYTES):
        pytest.skip("this kernel can't populate memory")
    assert all(pages.populate(page, pages.HUGE_PAGE_BYTES) for page in huge[1:])
    assert resident_bytes_of(array) >= len(huge) * pages.HUGE_PAGE_BYTES
    assert array[huge[0] - array.ctypes.data] == 7
    assert array[huge[1] - array.ctypes.data :].max() == 0


def test_whether_huge_pages_are_given_is_found_out() -> None:
    assert pages.transparent_huge_pages() in ("always", "madvise", "never", None)
    if pages.transparent_huge_pages() in ("always", "madvise"):
        assert pages.has_huge_pages()
    else:
        assert not pages.has_huge_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory can't be given back in part")
def test_parts_of_huge_pages_that_are_discarded_are_free_at_once() -> None:
    size, part, freed = 128 << 20, 1 << 20, []
    for _ in range(3):  # other processes may have grown meanwhile
        array = np.frombuffer(pages.touched_buffer(size), np.uint8)
        array[:] = 1
        before = free_bytes()
        for at in range(0, size, 2 * part):  # half of each page
            pages.discard(array[at:].ctypes.data, part)
        freed.append(free_bytes() - before)
        assert [array[at] for at in range(0, size, part)] == [0, 1] * (size // part // 2)
    assert max(freed) > size // 4
    pages.allow_huge(array.ctypes.data, size)
    array[:] = 2
    assert resident_bytes_of(array) >= size
