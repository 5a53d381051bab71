"""Results that nobody measured: valid by the schema, every figure from a seed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker.benchmark.results import Results
from smallthinker.expert_store.device.storage_profile import load_profile

MIB = 1 << 20
Row = dict[str, Any]

ENVIRONMENT: Row = {
    "kind": "environment",
    "format": "smallthinker-bench",
    "format_version": 1,
    "measured": "2026-01-02T03:04:05Z",
    "machine": {
        "cpu": "A CPU @ 2 GHz", "cores": 2, "logical_cores": 4, "memory_bytes": 8 << 30, "system": "Linux 6.1",
        "commit": "0123456",
    },
    "disk": {"filesystem": "ext4", "device": "sda", "model": None, "rotational": False},
    "versions": {"python": "3.11.0", "smallthinker": "0.1.0", "numpy": "2.0.0"},
    "model": {
        "name": "tiny", "quant": "q4_0", "compressed": False, "layers": 4, "experts": 8, "experts_per_token": 2,
        "hidden_size": 64, "vocab_size": 300, "dense_bytes": 1 << 20, "record_bytes": 1 << 16, "num_experts": 32,
    },
    "settings": {
        "tokens": 16, "seed": 0, "source": "random", "greedy": False, "threads": None, "reader": "auto", "kv": "f16",
        "limit": False, "throttle": "emulated", "text_sha256": None,
    },
    "profiles": {"emmc": load_profile("emmc").to_dict()},
}  # fmt: skip


def phase(tokens: int, wall_sec: float) -> Row:
    requests = tokens * 8
    return {
        "tokens": tokens, "wall_sec": wall_sec, "python_sec": 0.1 * wall_sec, "waiting_sec": 0.4 * wall_sec,
        "kernels_sec": {"experts": 0.3 * wall_sec, "linear": 0.1 * wall_sec, "a new kernel": 0.1 * wall_sec},
        "hits": requests // 2, "guessed": requests // 4, "late": 0, "misses": requests // 4,
        "certain_bytes": requests << 14, "useful_bytes": requests << 14, "wasted_bytes": 0, "reread_bytes": 0,
        "disk_busy_sec": 0.5 * wall_sec, "disk_bytes_per_sec_probed": 1e9, "disk_bytes_per_sec_seen": None,
        "ceiling_tok_per_sec": 1.25 * tokens / wall_sec, "ceiling_bound": "disk",
    }  # fmt: skip


def run(memory_mib: int, profile: str, repeat: int, tok_per_sec: float, prompt_tokens: int = 32) -> Row:
    answers = [
        {
            "start": start, "ttft_sec": 10 / speed, "decode_tok_per_sec": speed, "sampling_sec": 0.001, "cpu_sec": 1.0,
            "most_slots": 16, "peak_memory_bytes": 90 * MIB, "best_hit_rate": 0.75,
            "prefill": phase(prompt_tokens, 10 / speed), "decode": phase(16, 16 / speed),
        }
        for start, speed in (("cold", tok_per_sec), ("warm", 1.5 * tok_per_sec))
    ]  # fmt: skip
    return {
        "kind": "run", "memory_bytes": memory_mib * MIB, "profile": profile, "prompt_tokens": prompt_tokens,
        "repeat": repeat, "disk_bytes_per_sec_before": None, "limit_peak_bytes": None, "limit_ceiling_hits": None,
        "load_sec": 0.5, "slots": 12, "chunk": 32, "reader": "direct", "threads": 2, "isa": "avx2", "answers": answers,
    }  # fmt: skip


def made_up(
    path: Path,
    *,
    factor: float = 1.0,
    noise: float = 0.02,
    repeats: int = 3,
    seed: int = 0,
    memory_mib: tuple[int, ...] = (100, 200, 400),
    profiles: tuple[str, ...] = ("raw", "emmc"),
) -> Results:
    """A written results file: speeds of `factor` times what the budget suggests, each run `noise` beside it."""
    rng = np.random.default_rng(seed)
    rows = [
        run(mib, profile, repeat, float(factor * mib**0.5 / (n + 1) * rng.normal(1, noise)))
        for repeat in range(repeats)
        for n, profile in enumerate(profiles)
        for mib in memory_mib
    ]
    use = rng.dirichlet(np.ones(8), 4) * 2
    rows.append({"kind": "routing", "prompt_tokens": 32, "tokens": 32, "use": np.minimum(use, 1).round(4).tolist()})
    results = Results(path, copy.deepcopy(ENVIRONMENT), rows)
    write(results)
    return results


def write(results: Results) -> None:
    results.path.parent.mkdir(parents=True, exist_ok=True)
    lines = [results.environment, *results.rows]
    results.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
