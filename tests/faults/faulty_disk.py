"""A folder as a disk that fails: a FUSE file system (mfusepy) in a process of its own.

    python tests/faults/faulty_disk.py FOLDER MOUNTED CONTROL

CONTROL holds a fault's name and the number of the read from which it strikes, counted anew whenever that changes:
`none`, `once` (EIO, this read alone), `broken` (EIO, all from then on), `stalled` (two seconds), `stuck` (until CONTROL
changes), `pulled` (the disk is gone). CONTROL with the suffix .count gets the number of reads so far. Nothing can be
written.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations


class FaultyDisk(Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, folder: Path, control: Path) -> None:
        self.folder, self.control = folder, control
        self.counts, self.asked, self.reads = control.with_suffix(".count"), "", 0
        self.counting = threading.Lock()

    def place(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        try:
            found = self.place(path).lstat()
        except OSError as e:
            raise FuseOSError(e.errno or errno.EIO) from None
        facts = {key: getattr(found, key) for key in ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")}
        return facts | {"st_mtime": found.st_mtime_ns}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(entry.name for entry in self.place(path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FuseOSError(errno.EROFS)
        return os.open(self.place(path), os.O_RDONLY)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.counting:
            asked = self.control.read_text()
            if asked != self.asked:
                self.asked, self.reads = asked, 0
            self.reads += 1
            self.counts.write_text(str(self.reads))
            fault, first = asked.split()
            strikes, is_first = self.reads >= int(first), self.reads == int(first)
        if fault == "pulled" and strikes:
            os._exit(1)
        while fault == "stuck" and strikes and self.control.read_text() == asked:
            time.sleep(0.05)
        if fault == "stalled" and is_first:
            time.sleep(2)
        if (fault == "broken" and strikes) or (fault == "once" and is_first):
            raise FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)


def main() -> None:
    folder, mounted, control = (Path(argument) for argument in sys.argv[1:])
    FUSE(FaultyDisk(folder, control), str(mounted), foreground=True, ro=True)


if __name__ == "__main__":
    main()
