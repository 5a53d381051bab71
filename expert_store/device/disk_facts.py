"""What lies behind a path: file system, device, room, and whether reads can go past the page cache.

Knows nothing about models. Works without rights and on a full or read-only disk; what can't be told is None.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import psutil

from smallthinker import host

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs", "webdav")
_CONTAINER_LAYERS = ("overlay", "aufs", "fuse.fuse-overlayfs")
IN_MEMORY = ("tmpfs", "ramfs")
_VIRTUAL = ("vd", "xvd")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class DiskFacts:
    """path: as asked, absolute. device: the kernel's name of it. is_rotational: a hard disk; None for a virtual disk,
    which says so whatever is behind it. direct_reads: they worked just now. free_bytes: for this user."""

    path: str
    file_system: str | None
    device: str | None
    is_rotational: bool | None
    is_read_only: bool | None
    is_writable: bool
    direct_reads: bool | None
    free_bytes: int
    total_bytes: int

    @property
    def is_network(self) -> bool:
        return self.file_system in _NETWORK

    @property
    def is_container_layer(self) -> bool:
        return self.file_system in _CONTAINER_LAYERS

    @property
    def is_in_memory(self) -> bool:
        return self.file_system in IN_MEMORY

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "is_network": self.is_network,
            "is_container_layer": self.is_container_layer,
            "is_in_memory": self.is_in_memory,
        }


def disk_facts(path: Path, file: Path | None = None) -> DiskFacts:
    """Of an existing folder or file. file: one of at least a page there, to try direct reads with; else one is made for
    a moment, where that is allowed. Raises OSError where the path can't be looked at."""
    path = path.resolve(strict=True)
    usage = shutil.disk_usage(path)
    folder = path if path.is_dir() else path.parent
    file_system, number, options = _mount_of(path)
    device = _device(number or _number(path.stat().st_dev))
    read_only = "ro" in options.split(",") if options is not None else None
    if sys.platform != "win32":
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return DiskFacts(
        path=str(path),
        file_system=file_system,
        device=None if device is None else device.name,
        is_rotational=None if device is None else _is_rotational(device),
        is_read_only=read_only,
        is_writable=os.access(folder, os.W_OK) and not read_only,
        direct_reads=_direct_reads(path if path.is_file() else file, folder),
        free_bytes=usage.free,
        total_bytes=usage.total,
    )


def file_system(path: Path) -> str | None:
    """The kind of file system that holds an existing path, as the system calls it. Raises OSError as `disk_facts`."""
    return _mount_of(path.resolve(strict=True))[0]


def mount_of(path: str, mountinfo: str) -> tuple[str, str, str] | None:
    """File system, device number and options of the mount that holds an absolute path, of the text of
    /proc/self/mountinfo; of several at one place the last, which hides the others."""
    best: tuple[int, tuple[str, str, str]] | None = None
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:] or len(fields) < 10:
            continue
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])  # spaces and the like
        is_inside = path == point or path.startswith(point.rstrip("/") + "/")
        if is_inside and (best is None or len(point) >= best[0]):
            kind = fields[fields.index("-", 6) + 1]
            best = len(point), (kind, fields[2], fields[5])
    return None if best is None else best[1]


def _mount_of(path: Path) -> tuple[str | None, str | None, str | None]:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            found = mount_of(str(path), Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
            if found is not None:
                return found
    with contextlib.suppress(OSError, PermissionError):
        inside = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
        if inside:
            part = max(inside, key=lambda part: len(part.mountpoint))
            return part.fstype or None, None, part.opts
    return None, None, None


def _number(device: int) -> str:
    if sys.platform == "win32":
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def _device(number: str) -> Path | None:
    """The folder of a block device in sysfs; None for what has none, as network file systems."""
    link = Path("/sys/dev/block") / number
    with contextlib.suppress(OSError):
        if number and link.exists():
            return link.resolve()
    return None


def _is_rotational(device: Path) -> bool | None:
    if device.name.startswith(_VIRTUAL):
        return None
    for folder in (device, device.parent):  # a partition's disk is its parent
        with contextlib.suppress(OSError):
            return (folder / "queue" / "rotational").read_text().strip() == "1"
    return None


def _direct_reads(file: Path | None, folder: Path) -> bool | None:
    if file is not None:
        return _reads_directly(file)
    try:
        with NamedTemporaryFile(dir=folder, prefix=".smallthinker-", delete=os.name != "nt") as made:
            made.write(bytes(host.DIRECT_ALIGN))
            made.flush()
            return _reads_directly(Path(made.name))
    except OSError:  # read-only, full, not ours
        return None


def _reads_directly(file: Path) -> bool | None:
    try:
        fd = host.open_direct(file)
        if fd is None:
            return False
        try:
            host.read_at(fd, memoryview(host.aligned_buffer(host.DIRECT_ALIGN)), 0)
        finally:
            os.close(fd)
    except OSError:
        return None
    return True
