"""Small files that are written, or replaced, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write, or replace, a small file whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_hint(path: Path, data: bytes) -> bool:
    """The same for a file that may as well not be there. False where it can't be written."""
    try:
        write_whole(path, data)
    except OSError:
        return False
    return True
