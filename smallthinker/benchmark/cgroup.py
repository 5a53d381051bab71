"""A hard memory limit of the kernel around a child process. Needs root and memory cgroups, of version 1 or 2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smallthinker.errors import RequestError

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup. Page cache that its processes bring in counts as well."""

    folder: Path
    v2: bool

    def peak_bytes(self) -> int:
        return int((self.folder / ("memory.peak" if self.v2 else "memory.max_usage_in_bytes")).read_text())

    def ceiling_hits(self) -> int:
        """How often an allocation met the limit, reclaim that went well included."""
        if not self.v2:
            return int((self.folder / "memory.failcnt").read_text())
        events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
        return int(events["max"])


def is_v2() -> bool:
    """All controllers in one hierarchy: a process is in one group, with one group's limits."""
    return (CGROUPS / "cgroup.controllers").exists()


@contextmanager
def memory_limit(limit_bytes: int, name: str = "") -> Iterator[MemoryGroup]:
    """A group of that size, to be joined by a child, and removed at the end. name: of one among several. Raises
    RequestError where the system doesn't let this process make one."""
    v2 = is_v2()
    folder = (CGROUPS if v2 else CGROUPS / "memory") / f"smallthinker-limit-{os.getpid()}{name}"
    try:
        if v2:
            with contextlib.suppress(OSError):  # it may be on already, and be nobody's to change
                (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
        (folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
    except OSError as e:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise RequestError(
            f"{folder}: expected to make a memory cgroup, found: {e.strerror or e}; run as root on a system with "
            f"memory cgroups, or leave the hard limit out"
        ) from None
    try:
        yield MemoryGroup(folder, v2)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """The kernel refuses for a moment after the last process of the group has ended."""
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.01)


def joining(folders: Sequence[Path], command: Sequence[str]) -> list[str]:
    """The command, run by a shell that first joins these groups: what it allocates from its first page on is theirs."""
    if not folders:
        return list(command)
    count = len(folders)
    joins = "; ".join(f'echo $$ > "${{{n}}}"/cgroup.procs || exit 125' for n in range(1, count + 1))
    return ["/bin/sh", "-c", f'{joins}; shift {count}; exec "$@"', "sh", *map(str, folders), *command]
