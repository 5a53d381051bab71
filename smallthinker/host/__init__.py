"""What only one operating system can do, each with a portable fallback: direct reads, page-aligned memory, dropping
cached pages, atomic folder exchange, available and peak memory, what the machine is.

Knows nothing about models or stores. Importing it works everywhere; where a function's best way is missing, its
docstring or a comment says what happens on Windows and macOS instead. Sizes are bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from smallthinker.files import open_fd

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
DIRECT_ALIGN = 4096  # what direct reads need of file offset, length and memory address, on every common disk


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to a length that direct reads take."""
    return -(-nbytes // DIRECT_ALIGN) * DIRECT_ALIGN


def aligned_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed anonymous memory that starts on a page; the length is rounded up to a multiple of DIRECT_ALIGN.

    A map instead of a bytearray: page-aligned for direct reads, untouched pages cost nothing, freed to the system.
    """
    length = max(whole_pages(nbytes), DIRECT_ALIGN)
    if os.name == "nt":
        return mmap.mmap(-1, length)
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets no huge pages


def yield_to_others() -> None:
    """Let this thread run when no other wants its core. Linux only: elsewhere threads have no order of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def trim_heap() -> None:
    """Give the system what the allocator holds free, after work that needed much. glibc only."""
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def drop_library_pages() -> None:
    """Take what the interpreter's start read of its own files, but never mapped, out of the page cache.

    From a cold cache that is some 50 MB of read-ahead, charged to the process's memory cgroup; worth it only where such
    a cgroup leaves no room, since the next start reads it again.
    """
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    paths |= {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
    with contextlib.suppress(OSError):
        paths |= {line.split(None, 5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    for path in paths:
        if isinstance(path, str):
            with contextlib.suppress(OSError, ValueError):
                fd = open_buffered(Path(path))
                try:
                    drop_file_cache(fd, 0, 0)
                finally:
                    os.close(fd)


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
    if hasattr(os, "preadv"):
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
    if _libc is None:
        return None
    stat = _CacheStat()
    if _libc.syscall(_SYS_CACHESTAT, fd, ctypes.byref(_Range(offset, nbytes)), ctypes.byref(stat), 0) != 0:
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
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    """Make names that were created or renamed in this folder survive a power cut. Windows can't open a folder."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(path: Path, wait: bool) -> int | None:
    """Lock a folder for this process; close the returned descriptor to unlock. None: another process holds it.

    The kernel unlocks when the process ends, however it ends. Windows: -1, no lock; open files can't be deleted there.
    """
    if os.name == "nt":
        return -1
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:  # a network file system without locks
        pass
    return fd


def unlock_folder(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def exchange_folders(a: Path, b: Path) -> bool:
    """Swap two folders in one step. False where the system or file system can't (then nothing happened)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        old, new = os.fsencode(a), os.fsencode(b)
        if sys.platform == "linux":
            at_fdcwd, rename_exchange = -100, 2
            return bool(libc.renameat2(at_fdcwd, old, at_fdcwd, new, rename_exchange) == 0)
        if sys.platform == "darwin":
            rename_swap = 2
            return bool(libc.renamex_np(old, new, rename_swap) == 0)
    return False


class Memory(NamedTuple):
    """The machine's memory or a cgroup's: in all, used for good, and left. What can be reclaimed counts as left."""

    total_bytes: int
    used_bytes: int
    available_bytes: int


def machine_memory() -> Memory:
    import psutil  # 15 ms, here and below: importing LLM does without

    memory = psutil.virtual_memory()
    return Memory(int(memory.total), int(memory.total - memory.available), int(memory.available))


def cgroup_memory() -> list[Memory]:
    """Of every enclosing memory cgroup that has a limit below the machine's memory; none outside Linux."""
    import psutil

    total = int(psutil.virtual_memory().total)
    found = []
    with contextlib.suppress(OSError):
        for directory, v2 in _memory_cgroups(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup")):
            memory = memory_of_cgroup(directory, v2)
            if memory is not None and memory.total_bytes < total:
                found.append(memory)
    return found


def available_memory_bytes() -> int:
    """Memory that this process can still take: the least of the machine's and of every enclosing cgroup's."""
    return min(memory.available_bytes for memory in (machine_memory(), *cgroup_memory()))


def resident_bytes() -> int:
    """What this process has in memory now, mapped files included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def held_bytes() -> int:
    """Of that, what stays: without pages of files, which the system gives back and which count as available."""
    resident = resident_bytes()
    return resident - min(_own_status("RssFile") or 0, resident)


def memory_limit_bytes() -> int | None:
    """The least limit of the enclosing memory cgroups; None where none is below the machine's memory."""
    import psutil

    total = int(psutil.virtual_memory().total)
    found = []
    with contextlib.suppress(OSError):
        groups = _memory_cgroups(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
        found = [_limit_of_cgroup(directory, v2, _memory_stat(directory)) for directory, v2 in groups]
    return min((limit for limit in found if limit is not None and limit < total), default=None)


def memory_of_cgroup(directory: Path, v2: bool) -> Memory | None:
    """Of one memory cgroup with those inside it; None without a limit. What the kernel gives back at once doesn't count
    as used: pages of files, however recently they were read, but for those that must be written first, and slabs.

    Pages of shared memory and locked ones are on none of the lists that are counted. Version 1 doesn't tell of slabs.
    """
    stat = _memory_stat(directory)
    limit = _limit_of_cgroup(directory, v2, stat)
    usage = _number_in(directory / ("memory.current" if v2 else "memory.usage_in_bytes"))
    if limit is None or usage is None:
        return None

    def of_all(name: str) -> int:  # in version 1 the plain names are of the group without those inside it
        return stat.get(name, 0) if v2 else stat.get(f"total_{name}", stat.get(name, 0))

    files = of_all("active_file") + of_all("inactive_file")
    busy = sum(map(of_all, ("file_dirty", "file_writeback") if v2 else ("dirty", "writeback")))
    used = max(usage - max(files - busy, 0) - of_all("slab_reclaimable"), 0)
    return Memory(limit, used, max(limit - used, 0))


def _limit_of_cgroup(directory: Path, v2: bool, stat: dict[str, int]) -> int | None:
    """Beyond memory.high the kernel takes back what it can and lets the group wait: as good as the end. In version 1
    the statistics know of limits further out that a container can't see."""
    if v2:
        limits = [_number_in(directory / "memory.max"), _number_in(directory / "memory.high")]
    else:
        limits = [_number_in(directory / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_stat(directory: Path) -> dict[str, int]:
    stat = {}
    with contextlib.suppress(OSError):
        for line in (directory / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if value.isdecimal():
                stat[name] = int(value)
    return stat


def _number_in(path: Path) -> int | None:
    """What a file of a cgroup says; None where there is no such file, or "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _memory_cgroups(proc_cgroup: str, root: Path) -> list[tuple[Path, bool]]:
    """This process's memory cgroup and its ancestors as (folder, is v2). In a container, the path may lie outside."""
    found: list[tuple[Path, bool]] = []
    for line in proc_cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        v2 = number == "0" and controllers == ""
        if not v2 and "memory" not in controllers.split(","):
            continue
        for mount in [root, root / "unified"] if v2 else [root / "memory"]:
            inside = mount / path.lstrip("/")
            for directory in (inside, *inside.parents):
                if directory.is_relative_to(mount) and directory.is_dir():
                    found.append((directory, v2))
    return found


def peak_memory_bytes() -> int:
    """The most resident memory that this process had so far.

    Linux: VmHWM, not ru_maxrss, which a child inherits from the process that started it.
    """
    peak = _own_status("VmHWM")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _own_status(name: str) -> int | None:
    """A size in /proc/self/status, bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


class CpuSeconds(NamedTuple):
    """At some moment: the clock, what all processors have worked so far, for whomever, and what this process has."""

    clock: float
    all: float
    own: float


def cpu_seconds() -> CpuSeconds:
    """Of a virtual machine, what others took of its processors counts, too."""
    import psutil

    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are in user time already
    return CpuSeconds(
        time.perf_counter(), sum(sec for name, sec in times.items() if name not in idle), time.process_time()
    )


def cores_of_others(before: CpuSeconds, after: CpuSeconds) -> float:
    """How many processors other programs and machines took in between, on average."""
    passed = after.clock - before.clock
    others = (after.all - before.all) - (after.own - before.own)
    return max(others / passed, 0.0) if passed > 0 else 0.0


def cpu_name() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """Physical cores that this process may run on, at least 1. Hyper-threads don't add to memory-bound kernels."""
    import psutil

    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(physical, len(os.sched_getaffinity(0))))
    return max(1, physical)
