"""A file to measure a disk with: a large one that is there already, or a temporary one that leaves nothing behind.

Owns the choice and the temporary file. Knows nothing about how it is measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.disk_facts import IN_MEMORY, file_system
from smallthinker.expert_store.progress import Progress, silent

MIB: Final = 1 << 20
PREFERRED_BYTES: Final = 256 * MIB  # a file of this size is used rather than writing another
TEMPORARY_BYTES: Final = 512 * MIB  # larger than most disks' own caches
LEAST_BYTES: Final = 16 * MIB
_FREE_SHARE = 0.8  # of what is free: others write, too
_BLOCK_BYTES = 8 * MIB
_WRITE_SEC = 6.0  # a card that writes at 10 MB/s gets a smaller file
_MOST_ENTRIES, _MOST_LEVELS = 5000, 4  # of folders that are looked through
_SPARSE = 0.9  # of a file's bytes must lie on the disk: reading a hole reads nothing


@dataclass(frozen=True)
class ProbeFile:
    """path: to open it by; may be /proc/self/fd/N. shown: to tell people. note: what they should know, or None."""

    path: Path
    shown: Path
    file_bytes: int
    is_temporary: bool
    note: str | None = None


@contextlib.contextmanager
def probe_file(where: Path, progress: Progress = silent) -> Iterator[ProbeFile]:
    """A file of at least LEAST_BYTES on the disk behind `where`, a folder or a large file; gone afterwards if it is a
    temporary one, also after a kill where the system has /proc. Raises StoreReadError."""
    try:
        mode, kind = where.stat().st_mode, file_system(where)
    except (OSError, ValueError) as e:
        raise StoreReadError(f"{where}: cannot measure the disk: {_why(e)}; give a folder or a large file") from None
    if kind in IN_MEMORY:
        raise StoreReadError(
            f"{where}: expected a disk, found a file system in memory ({kind}); give a folder on a disk"
        )
    if stat.S_ISREG(mode):
        yield _given(where)
        return
    if not stat.S_ISDIR(mode):
        raise StoreReadError(f"{where}: expected a folder or a file, found a device or the like; give a folder on it")
    largest = _largest_file(where)
    if largest is not None and largest.file_bytes >= PREFERRED_BYTES:
        yield largest
        return
    try:
        made = _Temporary(where, progress)
    except OSError as e:
        if largest is not None:
            yield largest
            return
        raise StoreReadError(
            f"{where}: cannot write a file of {LEAST_BYTES // MIB} MiB to measure with ({_why(e)}), and found none "
            f"below; give a large file on this disk, say a store's experts.safetensors"
        ) from None
    try:
        yield made.file
    finally:
        made.close()


def _given(path: Path) -> ProbeFile:
    found = path.stat()
    if found.st_size < LEAST_BYTES:
        raise StoreReadError(
            f"{path}: expected at least {LEAST_BYTES // MIB} MiB to measure with, found {found.st_size} bytes; "
            f"give a larger file, or a folder"
        )
    if _is_sparse(found):
        raise StoreReadError(f"{path}: expected a file that lies on the disk, found one with holes; give another")
    return ProbeFile(path, path, found.st_size, is_temporary=False)


def _is_sparse(found: os.stat_result) -> bool:
    blocks = getattr(found, "st_blocks", None)  # Windows has none
    return blocks is not None and blocks * 512 < _SPARSE * found.st_size


def _largest_file(folder: Path) -> ProbeFile | None:
    """On the folder's own disk, among the first entries that are found; None where none has LEAST_BYTES."""
    device = folder.stat().st_dev
    best, best_bytes = None, LEAST_BYTES - 1
    waiting, seen = [(folder, 0)], 0
    while waiting and seen < _MOST_ENTRIES:
        here, level = waiting.pop(0)
        with contextlib.suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                seen += 1
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != device:
                        continue
                    if stat.S_ISDIR(found.st_mode) and level < _MOST_LEVELS:
                        waiting.append((Path(entry.path), level + 1))
                        continue
                    is_larger = stat.S_ISREG(found.st_mode) and found.st_size > best_bytes
                    if is_larger and not _is_sparse(found) and os.access(entry.path, os.R_OK):
                        best, best_bytes = Path(entry.path), found.st_size
    return None if best is None else ProbeFile(best, best, best_bytes, is_temporary=False)


class _Temporary:
    """A file of random bytes, which no file system can compress, written past what the page cache would hold back."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Raises OSError, also where fewer than LEAST_BYTES fit."""
        wanted = min(TEMPORARY_BYTES, int(shutil.disk_usage(folder).free * _FREE_SHARE))
        if wanted < LEAST_BYTES:
            raise OSError(f"only {wanted // MIB} MiB are to be had")
        self._fd, name = tempfile.mkstemp(prefix=".smallthinker-probe-", dir=folder)
        self._path = Path(name)
        try:
            by_number = Path(f"/proc/self/fd/{self._fd}")
            opened_by = self._path
            if sys.platform == "linux" and by_number.exists():
                self._path.unlink()  # the system removes it, however this process ends
                opened_by = by_number
            written = self._fill(wanted, progress)
            if written < LEAST_BYTES:
                raise OSError(f"only {written // MIB} MiB could be written")
        except BaseException:
            self.close()
            raise
        why = "more was not free" if wanted < TEMPORARY_BYTES and written == wanted else "it writes slowly"
        note = f"measured with {written // MIB} MiB only, {why}: a disk's own cache may hold part of it"
        self.file = ProbeFile(opened_by, folder, written, True, None if written == TEMPORARY_BYTES else note)

    def _fill(self, wanted: int, progress: Progress) -> int:
        random, until, written = np.random.default_rng(), time.perf_counter() + _WRITE_SEC, 0
        while written < wanted and time.perf_counter() < until:
            block = memoryview(random.bytes(min(_BLOCK_BYTES, wanted - written)))
            try:
                while block:
                    block = block[os.write(self._fd, block) :]
                os.fsync(self._fd)  # block by block: else all of the waiting comes at the end
            except OSError:
                if written < LEAST_BYTES:
                    raise
                os.ftruncate(self._fd, written)  # others filled the disk meanwhile
                return written
            written += min(_BLOCK_BYTES, wanted - written)
            progress(written, wanted, "writing")
        return written

    def close(self) -> None:
        os.close(self._fd)
        self._path.unlink(missing_ok=True)


def _why(e: Exception) -> str:
    return (e.strerror if isinstance(e, OSError) else None) or str(e)
