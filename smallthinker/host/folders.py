"""Folders that several processes use: synced, exchanged at once; and the user's own for what may be lost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path


def sync_folder(path: Path) -> None:
    """Make names that were created or renamed in this folder survive a power cut. Windows can't open a folder."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def cache_folder() -> Path:
    """Where this user's programs keep what they can do without. It need not be there."""
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    base = Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache"
    return base / "smallthinker"
