"""What this machine and this build are: versions, cores, memory and its limits, what the kernel can do.

Gathers what the engine really uses, and judges nothing. Sizes in bytes; None for what a system doesn't have.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil

from smallthinker import host
from smallthinker.host import pages

# as /proc/cpuinfo names what the kernels are written for
_SIMD = (
    "avx2",
    "f16c",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512vbmi",
    "asimddp",
)  # as /proc/cpuinfo has them


def versions() -> dict[str, Any]:
    """Of the package, what it is built on, and the system."""
    needed = [re.split(r"[^\w.-]", line)[0] for line in requires("smallthinker") or () if "extra ==" not in line]
    installed = {}
    for name in [*needed, "torch"]:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "version": version("smallthinker"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": _distribution(),
        "libc": libc or None,
        "packages": installed,
    }


def _distribution() -> str | None:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return platform.mac_ver()[0] or platform.win32_ver()[1] or None


def cores() -> dict[str, Any]:
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split(":", 1)[1].split())
                break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": host.cpu_name(),
        "cpu_flags": [flag for flag in _SIMD if flag in flags],
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable,
        "default_threads": host.physical_cores(),
    }


def memory() -> dict[str, Any]:
    """Of the machine, of the enclosing cgroups (`memory_limit_bytes` the least of them), and limits of the process."""
    machine, swap = host.machine_memory(), psutil.swap_memory()
    return {
        "memory_bytes": machine.total_bytes,
        "memory_available_bytes": host.available_memory_bytes(),
        "machine_available_bytes": machine.available_bytes,
        "memory_limit_bytes": host.memory_limit_bytes(),
        "cgroups": [cgroup._asdict() for cgroup in host.cgroup_memory()],
        "cgroup_version": _cgroup_version(),
        "swap_bytes": int(swap.total),
        "swap_free_bytes": int(swap.free),
        "ulimits": ulimits(),
        "overcommit": overcommit(),
    }


def _cgroup_version() -> int | None:
    """Which one accounts for this process's memory."""
    with contextlib.suppress(OSError):
        text = Path("/proc/self/cgroup").read_text()
        if any("memory" in line.split(":", 2)[1].split(",") for line in text.splitlines()):
            return 1
        return 2 if text.startswith("0::") else None
    return None


def ulimits() -> dict[str, int | None]:
    """Soft limits, by the letter that `ulimit` has for them; None for no limit. Empty on Windows."""
    if sys.platform == "win32":
        return {}
    import resource

    found = {}
    for letter, name in (("v", "RLIMIT_AS"), ("d", "RLIMIT_DATA"), ("m", "RLIMIT_RSS"), ("l", "RLIMIT_MEMLOCK")):
        if hasattr(resource, name):
            soft = resource.getrlimit(getattr(resource, name))[0]
            found[letter] = None if soft == resource.RLIM_INFINITY else soft
    return found


def overcommit() -> dict[str, Any] | None:
    """mode: 0 and 1 promise more memory than there is, 2 doesn't; left_bytes: what may still be promised in mode 2."""
    try:
        mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
        lines = Path("/proc/meminfo").read_text().splitlines()
        meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        left = meminfo["CommitLimit"] - meminfo["Committed_AS"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return {"mode": mode, "left_bytes": max(left, 0) if mode == 2 else None}


def kernel_features() -> dict[str, Any]:
    """What was tried just now. Only what the engine uses, and does without where it is missing."""
    return {
        "transparent_huge_pages": pages.transparent_huge_pages(),
        "huge_pages": pages.has_huge_pages(),
        "cachestat": _has_cachestat(),
    }


def _has_cachestat() -> bool:
    with contextlib.suppress(OSError):
        fd = host.open_buffered(Path(__file__))
        try:
            return host.cached_pages(fd, 0, 1) is not None
        finally:
            os.close(fd)
    return False
