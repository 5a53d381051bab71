"""How fast does a store decode beside PowerInfer's own engine: one text, one hard limit, the disk cold, in turns?

python bench/beside_powerinfer.py STORE --llama-cli PATH --gguf F.gguf --bundle F.bundle
       [--memory 1GiB] [--matrices 1120] [--context 512] [--storage FILE] [--tokens 64] [--rounds 5]

Needs root and cgroups. STORE is `smallthinker convert` of a file from random_gguf.py; F.gguf and F.bundle are what
PowerInfer's tools make of the same file with --transposed. `llama-cli` is built for this CPU from PowerInfer's
repository, folder smallthinker/, without its FFN repacking, so that it reads the bundle. It samples among the 40
likeliest words and prints them; they name their tokens, and this engine is then led along the very same ones.

Each side runs at its best: PowerInfer caches --matrices of 3 an expert (1,120 is the most that doesn't thrash in 1 GiB
with a context of 512; it fills its cache before the prompt, outside the speed that it reports, so whole commands are
compared, too). --storage: throttle the disk by the kernel to this profile's bandwidth and requests. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from smallthinker.benchmark.cgroup import joining, memory_limit
from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine
from smallthinker.expert_store.device.real_throttle import real_throttle
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.memory_plan import MIB, parse_size
from smallthinker.options import EngineOptions

PROMPT = "Hello there"
_WORD = re.compile(r"<t(\d+)>")
_SPEED = re.compile(r"(?<!prompt) eval time =.*?([\d.]+) tokens per second")


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def run(args: argparse.Namespace, command: Sequence[str], text: str | None = None) -> tuple[str, str, dict[str, Any]]:
    """A command from a cold disk under the limit -> what it wrote on stdout and stderr, and the whole command's
    figures."""
    drop_page_cache()
    with ExitStack() as resources:
        group = resources.enter_context(memory_limit(parse_size(args.memory)))
        if args.storage is not None:
            resources.enter_context(real_throttle(load_profile(args.storage), args.store))
        began = time.perf_counter()
        # random bytes need not be a text: what is none is found by who reads it
        done = subprocess.run(
            joining([group.folder], command), input=text, capture_output=True, text=True, errors="replace", check=False
        )
        sec = time.perf_counter() - began
        figures = {"command_sec": sec, "peak_bytes": group.peak_bytes(), "ceiling_hits": group.ceiling_hits()}
    if done.returncode:
        sys.exit(f"{command[0]}: exit status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout, done.stderr, figures


def powerinfer(args: argparse.Namespace, seed: int) -> tuple[list[int], dict[str, Any]]:
    """The tokens that it wrote, and its figures."""
    command = ["env", f"MAX_N_CACHED={args.matrices}", f"EXPERT_BUNDLE_PATH={args.bundle}", str(args.llama_cli)]
    command += ["-m", str(args.gguf), "-no-cnv", "-p", PROMPT, "-n", str(args.tokens), "-t", str(args.threads)]
    command += ["--temp", "1000", "--top-k", "40", "--top-p", "1", "--samplers", "temperature;top_k;top_p"]
    command += ["--ignore-eos", "--seed", str(seed), "-ub", "4", "-c", str(args.context)]
    text, log, figures = run(args, command)
    written = text.partition(PROMPT)[2].strip()
    if _WORD.sub("", written).strip():  # a byte's or a pair's word: the text no longer names its tokens
        return [], {}
    speed = _SPEED.search(log)
    if speed is None:
        sys.exit(f"{args.llama_cli}: expected its decoding speed in what it reports, found: {log[-2000:]}")
    return [int(id) for id in _WORD.findall(written)], figures | {"tok_per_sec": float(speed[1])}


def ours(args: argparse.Namespace, ids: list[int]) -> dict[str, Any]:
    job = {
        "store": str(args.store),
        "memory": args.memory,
        "ids": ids,
        "threads": args.threads,
        "context": args.own_context,
    }
    text, _, figures = run(args, [sys.executable, __file__, "--child"], json.dumps(job))
    return figures | dict(json.loads(text))


def child() -> None:
    """Lead an engine along the ids that stdin names; its figures on stdout."""
    job = json.load(sys.stdin)
    options = EngineOptions(memory=job["memory"], threads=job["threads"], context=job["context"], hot_set=False)
    with Engine(job["store"], options) as engine:
        engine.prefill(engine.tokenizer.encode(PROMPT))
        before, began = engine.experts.counters(), time.perf_counter()
        for id in job["ids"]:
            engine.decode(id)
        sec = time.perf_counter() - began
        experts = engine.experts.counters() - before
        figures = {"tok_per_sec": len(job["ids"]) / sec, "hit_rate": experts.hit_rate, "slots": engine.plan.most_slots}
        print(json.dumps(figures | {"read_mib_per_tok": experts.bytes_read / len(job["ids"]) / MIB}))


def median_text(rounds: list[dict[str, Any]], key: str, digits: int = 1) -> str:
    values = [of_round[key] for of_round in rounds]
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--llama-cli", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True, help="PowerInfer's model without experts")
    parser.add_argument("--bundle", type=Path, required=True, help="its experts")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--matrices", type=int, default=1120, help="that PowerInfer caches, three an expert")
    parser.add_argument("--context", type=int, default=512, help="of PowerInfer")
    parser.add_argument("--own-context", type=int, help="of this engine (default: its own)")
    parser.add_argument("--storage", help="a disk to throttle to, by the kernel")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    both: list[tuple[dict[str, Any], dict[str, Any]]] = []
    seed = 0
    while len(both) < args.rounds:
        seed += 1
        ids, peer = powerinfer(args, seed)
        if not ids:
            continue
        both.append((ours(args, ids), peer))
        own = both[-1][0]
        print(
            f"round {len(both)}: {own['tok_per_sec']:.2f} tokens/s, PowerInfer {peer['tok_per_sec']:.2f}, ratio "
            f"{own['tok_per_sec'] / peer['tok_per_sec']:.2f}; whole command {own['command_sec']:.1f} s, "
            f"{peer['command_sec']:.1f} s; peak {own['peak_bytes'] / MIB:.0f}, {peer['peak_bytes'] / MIB:.0f} MiB",
            flush=True,
        )
    own, peers = [a for a, _ in both], [b for _, b in both]
    for name, rounds in (("smallthinker", own), ("PowerInfer", peers)):
        speed, command = median_text(rounds, "tok_per_sec", 2), median_text(rounds, "command_sec")
        peak, hits = max(r["peak_bytes"] for r in rounds) / MIB, sum(r["ceiling_hits"] for r in rounds)
        print(f"{name}: {speed} tokens/s, command {command} s, peak {peak:.0f} MiB, ceiling hits {hits}")
    print(f"smallthinker: hit rate {median_text(own, 'hit_rate', 3)}, {own[0]['slots']} slots, "
          f"{median_text(own, 'read_mib_per_tok')} MiB read a token")  # fmt: skip
    ratios = [a["tok_per_sec"] / b["tok_per_sec"] for a, b in both]
    commands = [b["command_sec"] / a["command_sec"] for a, b in both]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); whole command "
          f"{statistics.median(commands):.2f} times faster")  # fmt: skip
    settings = {key: str(value) for key, value in vars(args).items() if value is not None}
    print(json.dumps(machine() | {"settings": settings, "rounds": both, "ratios": ratios, "command_ratios": commands}))


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main()
