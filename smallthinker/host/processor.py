"""The processor: its name, its cores, and who keeps them busy."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from smallthinker.figures import rounded

# What others may take without a word: services, and the terminal that shows the progress.
_QUIET_CORES = 0.25


def yield_to_others() -> None:
    """Let this thread run when no other wants its core. Linux only: elsewhere threads have no order of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class CpuSeconds(NamedTuple):
    """At some moment: the clock, what all processors have worked so far, for whomever, and what this process has."""

    clock: float
    all: float
    own: float


def cpu_seconds() -> CpuSeconds:
    """Of a virtual machine, what others took of its processors counts, too."""
    import psutil

    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are in user time already
    return CpuSeconds(
        time.perf_counter(), sum(sec for name, sec in times.items() if name not in idle), time.process_time()
    )


def cores_of_others(before: CpuSeconds, after: CpuSeconds) -> float:
    """How many processors other programs and machines took in between, on average."""
    passed = after.clock - before.clock
    others = (after.all - before.all) - (after.own - before.own)
    return max(others / passed, 0.0) if passed > 0 else 0.0


def busy_note(others: float) -> str | None:
    """What to say where others took so many processors while something was measured; None of a quiet machine."""
    if others <= _QUIET_CORES:
        return None
    return (
        f"this machine was busy: {rounded(others, 2)} of its processors were taken by others while it was measured; "
        "when it is quiet, run this again, and expect more"
    )


def cpu_name() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int:
    """The largest of the processor's caches; 0 where that can't be found out."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
        except (OSError, ValueError):
            continue
    return max(sizes)


def physical_cores() -> int:
    """Physical cores that this process may run on, at least 1. Hyper-threads don't add to memory-bound kernels."""
    import psutil

    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(physical, len(os.sched_getaffinity(0))))
    return max(1, physical)
