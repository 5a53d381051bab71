"""Where figures come from: machine, versions, commit and model. No host names, no paths, nobody's name."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

import smallthinker
from smallthinker import host
from smallthinker.demo import folder_name
from smallthinker.expert_store.store import Store
from smallthinker.host import machine_facts

COMMIT_FILE = "_commit.txt"  # what setup.py leaves in an installed package


def machine() -> dict[str, Any]:
    """What every figure is recorded with: CPU, cores, memory, system and the commit."""
    return {
        "cpu": host.cpu_name(),
        "cores": host.physical_cores(),
        "logical_cores": os.cpu_count() or 1,
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Of the packages that a speed may hang on."""
    found = machine_facts.versions()
    packages = {name: found["packages"][name] for name in ("numpy", "tokenizers") if name in found["packages"]}
    return {"smallthinker": found["version"], "python": found["python"]} | packages


def commit() -> str | None:
    """Of the source that runs: the checkout's own, with -dirty for changes that are in no commit, or the one that was
    current when the package was built. None where neither is known."""
    package = Path(smallthinker.__file__).resolve().parent
    if (package.parent / "pyproject.toml").exists() and (package.parent / ".git").exists():
        command = ["git", "-C", str(package.parent), "describe", "--always", "--exclude=*", "--abbrev=9", "--dirty"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() or None
    try:
        return (package / COMMIT_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def model_facts(store: Store) -> dict[str, Any]:
    """What was run. The name is the store's folder's, or demo."""
    config = store.config
    return {
        "name": folder_name(store.path)[:80],
        "quant": store.quant,
        "compressed": store.is_compressed,
        "layers": config.num_layers,
        "experts": config.experts_per_layer,
        "experts_per_token": config.experts_per_token,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "dense_bytes": store.dense_bytes,
        "record_bytes": store.record_bytes,
        "num_experts": store.num_experts,
    }
