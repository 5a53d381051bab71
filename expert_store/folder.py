"""A folder that appears under its name whole or not at all.

Its files are written into a hidden sibling, synced, and the sibling is renamed at the end. A process that is
killed leaves the sibling behind, without the lock that the kernel held for it; the next one with the same name removes
it. Knows nothing about what the files hold.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from smallthinker import host
from smallthinker.errors import StoreWriteError
from smallthinker.files import hidden_name

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class AtomicFolder:
    """Context manager. Write into `.temporary`; leaving without an exception publishes the folder as `out`.

    `own_files` are the names (shell patterns) that `out` may hold when `force` replaces it: a folder with anything else
    in it was not made by us and is never replaced. With `force`, the old folder stays until the new one is synced.
    Nothing that is read for it, `inputs` and what lies in them, may lie in `out`. Raises StoreWriteError: `out` exists,
    less than `needed_bytes` free, no permission.
    """

    def __init__(
        self,
        out: Path,
        needed_bytes: int,
        own_files: Collection[str],
        force: bool = False,
        inputs: Collection[Path] = (),
    ) -> None:
        try:
            self.out = Path(os.path.realpath(out))  # of a symlink to a store, what it points to is replaced
        except ValueError as e:
            raise StoreWriteError(f"{str(out)!r}: cannot write: {e}; choose another name") from None
        self.needed_bytes = needed_bytes
        self._inputs = inputs
        self.force = force
        self._own_files = tuple(own_files)
        self._lock = -1

    def __enter__(self) -> AtomicFolder:
        self.check()
        try:
            self._clean_stale()
            self._check_target()  # anew, since a folder that a kill left without its name has it again
            free = shutil.disk_usage(self.out.parent).free
            if free < self.needed_bytes:
                raise StoreWriteError(
                    f"{self.out}: needs {self.needed_bytes} bytes, the disk has {free} free; "
                    f"make {self.needed_bytes - free} bytes free or choose another disk"
                )
            self.temporary = self._make_temporary()
        except OSError as e:
            raise self.error(e) from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as e:
            raise self.error(e) from e
        finally:
            # after a publication, the temporary name is gone or holds the folder that was replaced
            shutil.rmtree(self.temporary, ignore_errors=True)
            host.unlock_folder(self._lock)

    def check(self) -> None:
        """Whether there is a place for the folder; writes nothing. Raises StoreWriteError."""
        try:
            if not self.out.parent.is_dir():
                raise StoreWriteError(f"{self.out}: the folder {self.out.parent} doesn't exist; create it first")
            self._check_target()
        except OSError as e:
            raise self.error(e) from e

    def error(self, e: OSError) -> StoreWriteError:
        """What happened as the project's own error; a full disk says how much is needed and how much is free."""
        if isinstance(e, StoreWriteError):
            return e
        if e.errno in _FULL:
            free = shutil.disk_usage(self.out.parent).free
            return StoreWriteError(
                f"{self.out}: disk full, or over a file size limit or quota ({e.strerror}): needs {self.needed_bytes} "
                f"bytes, {free} are free; nothing was left behind"
            )
        return StoreWriteError(f"{self.out}: cannot write: {e.strerror or e}")

    def _check_target(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise StoreWriteError(f"{self.out}: exists and is not a folder; choose another name")
        if Path.cwd().is_relative_to(self.out) or os.path.ismount(self.out):
            what = "a mounted disk" if os.path.ismount(self.out) else "the folder that this command runs in"
            raise StoreWriteError(f"{self.out}: is {what}, which can't be replaced by a new one; give a name inside it")
        for source in self._inputs:
            for path in (source, *(source.iterdir() if source.is_dir() else ())):
                if Path(os.path.realpath(path)).is_relative_to(self.out):
                    raise StoreWriteError(f"{self.out}: holds {path}, which this is made from; choose another name")
        names = {entry.name for entry in self.out.iterdir()}
        if names and not self.force:
            raise StoreWriteError(f"{self.out}: exists already; `force` replaces it")
        foreign = [name for name in sorted(names) if not any(fnmatch(name, own) for own in self._own_files)]
        if foreign:
            raise StoreWriteError(
                f"{self.out}: holds '{foreign[0]}', which force would delete with it; choose another name"
            )

    @property
    def _prefix(self) -> str:
        return f"{hidden_name(self.out.name)}.partial-"

    @property
    def _replaced(self) -> Path:
        return self.out.parent / f"{hidden_name(self.out.name)}.replaced"

    def _make_temporary(self) -> Path:
        while True:
            path = self.out.parent / f"{self._prefix}{secrets.token_hex(8)}"
            path.mkdir()  # not mkdtemp, which makes it private: a store is as readable as any other file
            lock = host.lock_folder(path, wait=True)
            assert lock is not None
            # between mkdir and the lock, another process may have taken the folder for a stale one
            if path.exists():
                self._lock = lock
                return path
            host.unlock_folder(lock)

    def _clean_stale(self) -> None:
        if self._replaced.exists() and not self.out.exists():
            self._replaced.rename(self.out)  # killed between the two renames of `_publish`
        shutil.rmtree(self._replaced, ignore_errors=True)
        for path in self.out.parent.glob(f"{_literal(self._prefix)}*"):
            lock = host.lock_folder(path, wait=False)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                host.unlock_folder(lock)

    def _publish(self) -> None:
        host.sync_folder(self.temporary)
        if not self.out.exists() or not any(self.out.iterdir()):
            if os.name == "nt" and self.out.exists():
                self.out.rmdir()  # elsewhere, a rename replaces an empty folder
            self.temporary.rename(self.out)
        elif not self.force:
            raise StoreWriteError(f"{self.out}: was created by someone else meanwhile; nothing was written")
        elif not host.exchange_folders(self.temporary, self.out):
            # no atomic exchange here: if we are killed between these lines, `_clean_stale` puts the old one back
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.out.rename(self._replaced)
            self.temporary.rename(self.out)
            shutil.rmtree(self._replaced, ignore_errors=True)
        host.sync_folder(self.out.parent)


def _literal(text: str) -> str:
    """Escape a glob pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
