"""How much memory there is, for the machine and in the cgroups around this process, and what this process takes of it.
Sizes are bytes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

from smallthinker.host.direct_io import drop_file_cache, open_buffered
from smallthinker.host.libc import libc


def trim_heap() -> None:
    """Give the system what the allocator holds free, after work that needed much. glibc only."""
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def check_address_space(nbytes: int) -> None:
    """Raises OSError where so much can't be mapped: for libraries that end the process when they are refused memory."""
    mmap.mmap(-1, nbytes).close()


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


def uncharged_bytes(default: int) -> int:
    """What can be taken, pages of files too, before the limit of any enclosing cgroup is reached and it must take
    something back; `default` where there is no limit."""
    room = [default]
    with contextlib.suppress(OSError):
        for directory, v2 in _memory_cgroups(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup")):
            limit = _limit_of_cgroup(directory, v2, _memory_stat(directory))
            usage = _number_in(directory / ("memory.current" if v2 else "memory.usage_in_bytes"))
            if limit is not None and usage is not None:
                room.append(limit - usage)
    return min(room)


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
