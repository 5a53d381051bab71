"""What every bench records about where it ran."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil

from smallthinker.expert_store import host


def machine() -> dict[str, object]:
    """CPU, cores, memory, kernel and the checkout's commit; no host name and no paths."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": host.cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "commit": commit,
    }
