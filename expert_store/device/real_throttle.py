"""The kernel's own throttle of a disk: tells what this process is allowed, and runs one under a throttle, which is the
emulator's check, where root and block cgroups exist.

Owns the cgroup that it makes, which is removed afterwards. Imposes a profile's random bandwidth and requests per
second; latency and depth stay the disk's, and what the page cache holds is not throttled. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smallthinker.errors import ProfileError
from smallthinker.expert_store.device.storage_profile import StorageProfile

_CGROUPS: Final = Path("/sys/fs/cgroup")
_BLOCK_DEVICES: Final = Path("/sys/dev/block")
_REMEDY = "run as root on Linux with block cgroups, or use the emulated disk, which needs neither"
_REMOVE_TRIES = 50


@contextlib.contextmanager
def real_throttle(profile: StorageProfile, path: str | Path, pid: int | None = None) -> Iterator[Path]:
    """Inside, this process (or `pid`) and whatever it starts reads the disk behind `path` no faster than `profile`.

    Yields the cgroup's folder. cgroup v1: other controllers' limits stay. v2: the process leaves its cgroup meanwhile,
    and with it every limit of that one. Raises ProfileError where it can't be done.
    """
    pid = os.getpid() if pid is None else pid
    device = disk_of(Path(path))
    try:
        v1, parent, home = _cgroups_of(pid)
    except OSError as e:
        raise ProfileError(
            f"throttle: cannot find the block cgroup of process {pid}: {e.strerror}; {_REMEDY}"
        ) from None
    folder = parent / f"smallthinker-{os.urandom(6).hex()}"
    bandwidth, requests = int(profile.random_bytes_per_sec), max(1, int(profile.random_iops))
    try:
        if not v1 and "io" not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text("+io")
        folder.mkdir()
        try:
            if v1:
                (folder / "blkio.throttle.read_bps_device").write_text(f"{device} {bandwidth}")
                (folder / "blkio.throttle.read_iops_device").write_text(f"{device} {requests}")
            else:
                (folder / "io.max").write_text(f"{device} rbps={bandwidth} riops={requests}")
            (folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            folder.rmdir()
            raise
    except OSError as e:
        raise ProfileError(f"throttle: {e.filename or folder}: {e.strerror or e}; {_REMEDY}") from None
    try:
        yield folder
    finally:
        _leave(folder, home)


def allowed_bytes_per_sec(path: str | Path) -> float | None:
    """How fast this process may read the disk behind `path`, by the throttles of its cgroups; None where there is none,
    or it can't be told."""
    try:
        device = disk_of(Path(path))
        v1, parent, home = _cgroups_of(os.getpid())
        if v1:  # a throttle is of its own cgroup alone
            found = [_limit_in(home / "blkio.throttle.read_bps_device", device, "")]
        else:
            inside = [home, *home.parents]
            of_all = inside[: inside.index(parent)] if parent in inside else [home]
            found = [_limit_in(folder / "io.max", device, "rbps=") for folder in of_all]
    except (OSError, ProfileError):
        return None
    return min((limit for limit in found if limit is not None), default=None)


def _limit_in(file: Path, device: str, prefix: str) -> float | None:
    """Bytes per second for `device`, of lines like '8:0 1048576' or '8:0 rbps=1048576 wbps=max'."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            number, *limits = line.split()
            if number == device:
                values = [limit.removeprefix(prefix) for limit in limits if limit.startswith(prefix)]
                return next((float(value) for value in values if value.isdigit()), None)
    return None


def disk_of(path: Path) -> str:
    """The whole disk behind a path, as the kernel numbers it ('254:0'). Raises ProfileError where there is none."""
    if sys.platform == "win32":
        raise ProfileError(f"throttle: {path}: Windows doesn't number disks; {_REMEDY}")
    try:
        number = path.stat().st_dev
        if os.major(number) == 0:  # btrfs, overlays: no device of their own
            number = _mounted_device(path)
        folder = (_BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        whole = folder.parent if (folder / "partition").exists() else folder
        return (whole / "dev").read_text().strip()
    except OSError as e:
        raise ProfileError(
            f"throttle: {path}: no disk behind it: {getattr(e, 'strerror', None) or e}; {_REMEDY}"
        ) from None


def _mounted_device(path: Path) -> int:
    if sys.platform == "win32":
        raise OSError(f"{path}: no device number")
    import psutil

    resolved = path.resolve()
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint), reverse=True)
    mount = next(mount for mount in mounts if resolved.is_relative_to(mount.mountpoint))
    return Path(mount.device).stat().st_rdev


def _cgroups_of(pid: int) -> tuple[bool, Path, Path]:
    """Whether it is v1, where to make a cgroup, and the process's own. Raises OSError."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if "blkio" in controllers.split(","):
            home = _CGROUPS / "blkio" / name.lstrip("/")
            home = home if home.is_dir() else _CGROUPS / "blkio"  # in a container the name may be of outside
            return True, home, home
        if controllers == "" and (_CGROUPS / "cgroup.controllers").exists():
            home = _CGROUPS / name.lstrip("/")
            # Below the root: a cgroup that has processes of its own can't hand controllers down.
            return False, _CGROUPS, home if home.is_dir() else _CGROUPS
    raise FileNotFoundError(2, "no block controller is mounted")


def _leave(folder: Path, home: Path) -> None:
    """Bring every process back and remove the cgroup. What can't be removed is empty and harmless."""
    for _ in range(_REMOVE_TRIES):  # a process that is ending holds it a little longer
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (home / "cgroup.procs").write_text(pid)
            folder.rmdir()
            return
        time.sleep(0.02)
