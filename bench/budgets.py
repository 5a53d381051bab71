"""How fast does a store decode at each memory budget, and how much faster could it?

python bench/budgets.py STORE --memory 512MiB 1GiB 4GiB [--limit LIMITER --limit-options "-b 300M"] [--plot FILE.svg]

Every run is a process of its own that decodes the same token ids, random ones or those of a text. Right before it,
another process measures what the disk gives: random records through the native queue with the settings of a disk
profile that was probed at the start, under the same limiter. In turns, all budgets once a round: a shared disk changes
from minute to minute. Cold: the store is taken out of the page cache before each. LIMITER is a command that runs one
under a hard limit, from a cold page cache: LIMITER -m BYTES -c -- COMMAND; `peak_bytes=` and `ceiling_hits=` in what it
prints on stderr are reported. Without it a budget is only the engine's promise. Medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from plot import plot_budgets

from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store import host
from smallthinker.expert_store.disk_profile import load_profile, save_profile
from smallthinker.expert_store.format import PROFILE_FILE
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.probe import probe, read_through
from smallthinker.expert_store.store import Store
from smallthinker.memory_plan import MIB, parse_size
from smallthinker.roofline import Phase

CEILING_SEC = 0.4  # of reading: several slices of a throttle
Row = dict[str, Any]


def make_cold(store: Path) -> None:
    """Take the store out of the page cache, where a copy or a conversion may have left it."""
    for path in store.glob("*.safetensors"):
        with path.open("rb") as file:
            host.drop_file_cache(file.fileno(), 0, 0)


@contextmanager
def kept_profile(store: Path) -> Iterator[None]:
    """The store's disk profile is afterwards what it was: the bench's own may be of a throttled disk."""
    path = store / PROFILE_FILE
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    finally:
        if before is not None:
            path.write_bytes(before)
        else:
            path.unlink(missing_ok=True)


def probe_disk(path: Path) -> Row:
    """In a process of its own: a new disk profile, kept beside the store for the runs."""
    with Store.open(path) as store:
        profile = probe(store)
        if not profile.measured or not save_profile(store, profile):
            sys.exit(f"{path}: too small, compressed, read-only or kept in the page cache: its disk can't be measured")
        return profile.to_dict()


def measure_disk(path: Path) -> Row:
    """In a process of its own: bytes per second of random records, as the engine's queue reads them."""
    with Store.open(path) as store:
        profile = load_profile(store)
        assert profile is not None  # made before the first run
        count = profile.depth + 2
        nbytes = count * store.record_bytes
        slots = np.frombuffer(host.aligned_buffer(nbytes), np.uint8, nbytes).reshape(count, -1)
        slots.fill(0)  # a page's first touch is dear, and not the disk's doing
        records = np.random.default_rng().permutation(store.num_experts).tolist()
        queue = NativeQueue(store, slots, profile.kind, chunk_bytes=profile.chunk_bytes, depth=profile.depth)
        began = time.perf_counter()
        ended = read_through(queue, count, records, began + CEILING_SEC)
        seconds = time.perf_counter() - began
        queue.close()
    return {"bytes_per_sec": ended * store.record_bytes / seconds}


def decode(args: argparse.Namespace) -> Row:
    """In a process of its own: the figures of `--tokens` decode steps after `--prompt` tokens."""
    with Engine(args.store, memory=args.memory[0], context=args.context, reader=args.reader) as engine:
        total = args.prompt + args.tokens
        if args.text is None:
            ids = np.random.default_rng(args.seed).integers(0, engine.config.vocab_size, total).tolist()
        else:
            ids = engine.tokenizer.encode(args.text.read_text(encoding="utf-8"))[:total]
            if len(ids) < total:
                sys.exit(f"{args.text}: expected {total} tokens or more, found {len(ids)}")
        began = time.perf_counter()
        engine.prefill(ids[: args.prompt])
        ttft = time.perf_counter() - began
        clocks, experts = engine.clocks(), engine.experts.counters()
        cpu, caller_cpu, began = time.process_time(), time.thread_time(), time.perf_counter()
        for token in ids[args.prompt :]:
            engine.decode(token)
        seconds = time.perf_counter() - began
        cpu, caller_cpu = time.process_time() - cpu, time.thread_time() - caller_cpu
        disk = engine.disk_profile
        phase = Phase.of(
            engine.clocks() - clocks,
            engine.experts.counters() - experts,
            disk.bandwidth_bytes_per_sec if disk.measured else None,
        )
        computing = phase.arithmetic_sec + phase.python_sec
        return {
            "decode_tok_per_sec": args.tokens / seconds,
            "ttft_sec": ttft,
            "load_sec": engine.load_sec,
            "decode": phase.to_dict(),
            "cpu_sec": cpu,
            # Of the thread that calls the kernels and waits for reads, beyond what it computes.
            "caller_cpu_per_waiting_sec": _while_waiting(caller_cpu - computing, phase),
            # Of all threads: the queue's reading is in it, and the workers' 50 us of looking out for the next kernel.
            "cpu_per_waiting_sec": _while_waiting(cpu - computing - (engine.threads - 1) * phase.arithmetic_sec, phase),
            "peak_memory_bytes": host.peak_memory_bytes(),
            "slots": engine.plan.slots,
            "slots_lent": engine.experts.limit - engine.plan.slots,
            "num_experts": engine.plan.num_experts,
            "reader": engine.reader_name,
            "threads": engine.threads,
        }


def _while_waiting(cpu_sec: float, phase: Phase) -> float | None:
    """None where there was too little waiting to tell."""
    return cpu_sec / phase.stall_sec if phase.stall_sec > 0.25 * phase.wall_sec else None


def in_process(args: argparse.Namespace, part: str, memory: str) -> tuple[Row, str]:
    """What that part says, and what the limiter said. Raises RuntimeError with the line of a run that failed."""
    command = [sys.executable, __file__, str(args.store), "--part", part, "--memory", memory]
    for name in ("context", "prompt", "tokens", "seed", "reader", "text"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name}", str(value)]
    if args.limit is not None:
        limiter = [str(args.limit), "-m", str(parse_size(memory)), *shlex.split(args.limit_options), "-c", "--"]
        command = limiter + command
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if not line.startswith("limit:")]
        raise RuntimeError(f"{memory}: {said[-1] if said else f'exit status {result.returncode}'}")
    row: Row = json.loads(result.stdout.splitlines()[-1])
    return row, result.stderr


def run(args: argparse.Namespace, memory: str) -> Row:
    """One run at one budget, and the disk's speed right before it. Raises RuntimeError."""
    make_cold(args.store)
    disk, _ = in_process(args, "disk", memory)
    make_cold(args.store)
    row, said = in_process(args, "decode", memory)
    for name in ("peak_bytes", "ceiling_hits"):
        if match := re.search(rf"\b{name}=(\d+)", said):
            row[f"limit_{name}"] = int(match[1])
    return row | {"disk_bytes_per_sec_before": disk["bytes_per_sec"]}


def summary(runs: list[Row], tokens: int) -> Row:
    """Medians, and the range of the speed."""

    def median(*path: str) -> float | None:
        values = []
        for found in runs:
            value: Any = found
            for key in path:
                value = value.get(key)
            values.append(value)
        return None if None in values else statistics.median(values)

    speeds = [r["decode_tok_per_sec"] for r in runs]
    per_token = ("bytes_read", "certain_bytes", "useful_bytes", "late_bytes", "wasted_bytes", "reread_bytes")
    times = ("arithmetic_sec", "python_sec", "stall_sec")
    plain = (
        *("decode_tok_per_sec", "ttft_sec", "slots", "slots_lent", "num_experts", "peak_memory_bytes"),
        *("caller_cpu_per_waiting_sec", "cpu_per_waiting_sec", "disk_bytes_per_sec_before"),
        *("limit_peak_bytes", "limit_ceiling_hits"),
    )
    return (
        {key: median(key) for key in plain}
        | {f"{key}_per_token": (median("decode", key) or 0) / tokens for key in (*per_token, *times)}
        | {
            "decode_tok_per_sec_all": speeds,
            "hit_rate": median("decode", "experts", "hit_rate"),
            "roofline_tok_per_sec": median("decode", "roofline", "tok_per_sec"),
            "roofline_share": median("decode", "roofline", "share"),
            "roofline_bound": statistics.mode(r["decode"]["roofline"]["bound"] for r in runs),
            "disk_bytes_per_sec_seen": median("decode", "disk_bytes_per_sec_seen"),
            "disk_bytes_per_sec_probed": median("decode", "disk_bytes_per_sec_probed"),
            "cpu_sec_per_token": (median("cpu_sec") or 0) / tokens,
        }
    )


def line(memory: str, row: Row) -> str:
    """For people."""
    speeds = row["decode_tok_per_sec_all"]
    mib = {key: row[f"{key}_bytes_per_token"] / MIB for key in ("certain", "useful", "wasted", "reread")}
    ms = {key: 1000 * row[f"{key}_sec_per_token"] for key in ("arithmetic", "python", "stall", "cpu")}
    waiting, caller = row["cpu_per_waiting_sec"], row["caller_cpu_per_waiting_sec"]
    hits = "" if row["limit_ceiling_hits"] is None else f", {row['limit_ceiling_hits']:.0f} ceiling hits"
    return (
        f"{memory:>8}: {row['decode_tok_per_sec']:6.2f} tokens/s ({min(speeds):.2f} to {max(speeds):.2f}), "
        f"{row['roofline_share']:.0%} of {row['roofline_tok_per_sec']:.1f} ({row['roofline_bound']}); "
        f"{row['slots']:.0f}+{row['slots_lent']:.0f} of {row['num_experts']:.0f} experts, hit rate "
        f"{row['hit_rate']:.0%}; MiB a token: certain {mib['certain']:.1f}, useful {mib['useful']:.1f}, wasted "
        f"{mib['wasted']:.1f}, reread {mib['reread']:.1f}; ms a token: arithmetic {ms['arithmetic']:.1f}, Python "
        f"{ms['python']:.1f}, waiting {ms['stall']:.1f}, CPU {ms['cpu']:.1f}"
        + ("" if waiting is None else f" (a second of waiting costs {waiting:.2f}, its caller {caller:.2f})")
        + f"; disk {row['disk_bytes_per_sec_before'] / 1e9:.2f} GB/s before, "
        f"{(row['disk_bytes_per_sec_seen'] or 0) / 1e9:.2f} seen; TTFT {row['ttft_sec']:.2f} s; peak "
        f"{(row['limit_peak_bytes'] or row['peak_memory_bytes']) / MIB:.0f} MiB{hits}"
    )


def warn_of_cliffs(rows: dict[str, Row]) -> None:
    """More memory must never be slower, by more than the runs differ among themselves."""
    ordered = sorted((parse_size(memory), memory) for memory in rows)
    for (_, smaller), (_, larger) in itertools.pairwise(ordered):
        slow, fast = rows[larger]["decode_tok_per_sec_all"], rows[smaller]["decode_tok_per_sec_all"]
        if max(slow) < min(fast):
            print(f"warning: {larger} is slower than {smaller}: at most {max(slow):.2f}, at least {min(fast):.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory", nargs="+", default=["1GiB"])
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--prompt", type=int, default=16, help="tokens before them, not counted")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the token ids")
    parser.add_argument("--text", type=Path, help="decode the tokens of this text instead")
    parser.add_argument("--reader", choices=["auto", "mmap", "direct"], default="auto")
    parser.add_argument("--limit", type=Path, help="a command that runs another under a hard limit")
    parser.add_argument(
        "--limit-options", default="", help="more options for it, in one string: a throttle of the disk"
    )
    parser.add_argument("--plot", type=Path, help="draw tokens/s over the budget; needs matplotlib")
    parser.add_argument("--title", default="", help="of the plot")
    parser.add_argument("--part", choices=["probe", "disk", "decode"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.part is not None:
        try:
            parts = {"probe": lambda: probe_disk(args.store), "disk": lambda: measure_disk(args.store)}
            print(json.dumps(parts.get(args.part, lambda: decode(args))()))
        except SmallThinkerError as e:
            sys.exit(str(e))
        return
    found: dict[str, list[Row]] = {memory: [] for memory in args.memory}
    with kept_profile(args.store):
        try:
            make_cold(args.store)
            profile, _ = in_process(args, "probe", max(args.memory, key=parse_size))
            for _ in range(args.repeats):
                for memory in args.memory:
                    found[memory].append(run(args, memory))
        except RuntimeError as e:
            sys.exit(str(e))
    rows = {memory: summary(runs, args.tokens) for memory, runs in found.items()}
    for memory, row in rows.items():
        print(line(memory, row))
    warn_of_cliffs(rows)
    if args.plot is not None:
        plot_budgets(args.plot, {parse_size(memory): row for memory, row in rows.items()}, args.title)
    names = ("tokens", "prompt", "context", "repeats", "seed", "reader", "limit_options")
    settings = {name: getattr(args, name) for name in names} | {"is_limited": args.limit is not None}
    settings["disk_profile"] = profile
    print(json.dumps(machine() | settings | {"budgets": rows}))


if __name__ == "__main__":
    main()
