"""What a bug report needs, and whether a model could run here: the build, the CPU, the memory.

Gathers facts and finds problems; prints nothing. Works where the kernels can't even be loaded.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import psutil

from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store import host

MIB = 1 << 20


def diagnose() -> dict[str, Any]:
    """Facts, and `problems`: a line for each reason why no model can run, none where one just did. Sizes in bytes."""
    problems: list[str] = []
    facts: dict[str, Any] = {
        "version": version("smallthinker"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": host.cpu_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "default_threads": host.physical_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "memory_available_bytes": host.available_memory_bytes(),
        "memory_limit_bytes": host.memory_limit_bytes(),
        "transparent_huge_pages": host.transparent_huge_pages(),
        "isa": _instruction_sets(problems),
    }
    if not problems:
        _answer_once(problems)
    return facts | {"problems": problems}


def _instruction_sets(problems: list[str]) -> dict[str, Any] | None:
    try:
        from smallthinker import _kernels
    except ImportError as e:  # not built for this Python, or SMALLTHINKER_ISA names what this CPU can't run
        problems.append(f"the kernels can't be loaded: {e}")
        return None
    is_forced = bool(os.environ.get("SMALLTHINKER_ISA"))
    return {
        "built": _kernels.built_isas(),
        "available": _kernels.available_isas(),
        "chosen": _kernels.isa(),
        "why": "forced by SMALLTHINKER_ISA" if is_forced else "the best that this CPU can run",
    }


def _answer_once(problems: list[str]) -> None:
    """One token of the bundled model: nothing else shows that kernels, threads, files and memory all work."""
    from smallthinker.llm import LLM

    try:
        with LLM() as llm:
            llm.generate("Once upon a time", max_tokens=1, seed=0)
    except (SmallThinkerError, OSError, MemoryError) as e:
        problems.append(f"the bundled model gave no answer: {e}")


def diagnosis_text(facts: dict[str, Any]) -> str:
    """facts: what `diagnose` returns -> lines for people."""
    isa, limit = facts["isa"], facts["memory_limit_bytes"]
    total, available = facts["memory_bytes"] / MIB, facts["memory_available_bytes"] / MIB
    rows = {
        "version": f"{facts['version']}, Python {facts['python']}, {facts['system']}",
        "cpu": f"{facts['cpu']}, {facts['physical_cores'] or 'unknown'} physical cores, "
        f"{facts['logical_cores']} logical, {facts['default_threads']} threads by default",
        "kernels": "none"
        if isa is None
        else f"{isa['chosen']}, {isa['why']}; it can run {', '.join(isa['available'])} of {', '.join(isa['built'])}",
        "memory": f"{total:,.0f} MiB, {available:,.0f} MiB available, "
        + ("no cgroup limit" if limit is None else f"cgroup limit {limit / MIB:,.0f} MiB"),
        "huge pages": facts["transparent_huge_pages"] or "not this system's",
    }
    lines = [f"{name:<12}{value}" for name, value in rows.items()]
    problems = facts["problems"]
    lines += [f"problem     {problem}" for problem in problems] or ["ready       the bundled model answers"]
    return "\n".join(lines)
