"""How many rows a second does one machine answer, beside llama.cpp's continuous batching: same weights, same ceiling?

python bench/batch_beside_llama.py STORE --llama-batched-bench PATH --gguf F.gguf
       [--limit 1GiB] [--rows 64] [--prompt 60] [--tokens 32] [--at-once 64 32] [--threads N] [--repeats 1]

STORE is `smallthinker convert` of F.gguf, which random_gguf.py made: there each capital letter is a token, and prompts
are random ones. --limit: a hard limit of the kernel around each side, from a cold disk, and this engine's --memory,
too (needs root and cgroups); without it, all is in memory. llama.cpp runs at its best: its weights repacked without a
limit, mapped with one (it is killed with repacked ones), and with as many rows at once of --at-once as are fastest; the
rest of the rows would follow as fast. Starts don't count on either side. In turns; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from smallthinker import host
from smallthinker.benchmark.cgroup import joining, memory_limit
from smallthinker.benchmark.environment import machine
from smallthinker.memory_plan import MIB, parse_size


def run(args: argparse.Namespace, command: list[Any]) -> tuple[str, dict[str, int]]:
    """-> what it printed, and what the limit saw."""
    with ExitStack() as resources:
        group = None
        if args.limit is not None:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            group = resources.enter_context(memory_limit(parse_size(args.limit)))
        words = [str(word) for word in command]
        done = subprocess.run(
            joining([] if group is None else [group.folder], words), capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{words[0]}: exit {done.returncode}: {done.stderr[-2000:]}")
        if group is None:
            return done.stdout, {}
        return done.stdout, {"peak_mib": group.peak_bytes() // MIB, "ceiling_hits": group.ceiling_hits()}


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "smallthinker", "batch", args.store, folder / "in.jsonl", folder / "out.jsonl"]
    command += ["--prompt-template", "{text}", "--raw", "--ignore-eos", "--max-tokens", args.tokens, "--force"]
    command += ["--threads", args.threads, "--json", *([] if args.limit is None else ["--memory", args.limit])]
    said, seen = run(args, command)
    figures = json.loads(said)
    assert figures["new_tokens"] == args.rows * args.tokens and figures["prompt_tokens"] == args.rows * args.prompt
    at_once = {name: figures[name] for name in ("at_once", "hit_rate")}
    return {"rows_per_sec": args.rows / figures["answering_sec"], **at_once, **seen}


def theirs(args: argparse.Namespace, at_once: int) -> dict[str, Any]:
    context = at_once * (args.prompt + args.tokens)
    command = [args.llama_batched_bench, "-m", args.gguf, "-t", args.threads, "-c", context, "-b", 2048, "-ub", 512]
    command += ["-npp", args.prompt, "-ntg", args.tokens, "-npl", at_once, "--output-format", "jsonl"]
    said, seen = run(args, command + ([] if args.limit is None else ["-lm", "mmap", "--no-repack"]))
    (figures,) = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    return {"rows_per_sec": at_once / figures["t"], "at_once": at_once, **seen}


def shown(i: int, side: str, figures: dict[str, Any]) -> dict[str, Any]:
    print(f"round {i + 1}: {side:12} {figures['rows_per_sec']:.3f} rows/s, {figures}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--llama-batched-bench", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--limit")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=60, help="tokens of each row's prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--at-once", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--threads", type=int, default=host.physical_cores())
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    rng, rounds = np.random.default_rng(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = ("".join(row) for row in rng.choice(list(ascii_uppercase), (args.rows, args.prompt)).tolist())
        (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for i in range(args.repeats):
            found = {"smallthinker": shown(i, "smallthinker", ours(args, folder))}
            peers = [shown(i, "llama.cpp", theirs(args, at_once)) for at_once in args.at_once]
            rounds.append(found | {"llama.cpp": max(peers, key=lambda one: float(one["rows_per_sec"]))})
    ratios = [one["smallthinker"]["rows_per_sec"] / one["llama.cpp"]["rows_per_sec"] for one in rounds]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    shape = {"rows": args.rows, "prompt": args.prompt, "tokens": args.tokens, "limit": args.limit}
    print(json.dumps(machine() | shape | {"ratio": statistics.median(ratios), "rounds": rounds}))


if __name__ == "__main__":
    main()
