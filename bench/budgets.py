"""How fast does a store decode at each memory budget? python bench/budgets.py STORE --memory 512MiB 1GiB 4GiB

Before each run it measures what the disk gives when records are read at random with as many reads in flight as the
engine has. Every run is a process of its own with a greedy answer; medians. Cold: the store is taken out of the page
cache, and both readers leave nothing of it there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
from machine import machine

from smallthinker.engine import IO_WORKERS
from smallthinker.expert_store import host
from smallthinker.expert_store.io_thread import IoThread, ReadTicket
from smallthinker.expert_store.readers import ReaderKind, open_reader
from smallthinker.expert_store.store import Store

PROMPT = "Once upon a time"
MIB = 1 << 20


def disk_bytes_per_sec(path: Path, reader_kind: ReaderKind, min_bytes: int = 1 << 29) -> float:
    """Random whole records, IO_WORKERS in flight."""
    with Store.open(path) as store:
        reader = open_reader(reader_kind, store)
        buffers = [memoryview(host.aligned_buffer(store.record_bytes)) for _ in range(2 * IO_WORKERS)]
        order = np.random.default_rng(0).permutation(store.num_experts)[: max(8, min_bytes // store.record_bytes)]
        pending: deque[ReadTicket] = deque()
        with IoThread(reader, IO_WORKERS) as io:
            began = time.perf_counter()
            for i, record in enumerate(order.tolist()):
                if len(pending) == len(buffers):
                    pending.popleft().wait()
                pending.append(io.submit(record, buffers[i % len(buffers)]))
            for ticket in pending:
                ticket.wait()
            return len(order) * store.record_bytes / (time.perf_counter() - began)


def make_cold(store: Path) -> None:
    """Take the store out of the page cache, where a copy or a conversion may have left it."""
    for path in store.glob("*.safetensors"):
        with path.open("rb") as file:
            host.drop_file_cache(file.fileno(), 0, 0)


def run(store: Path, memory: str, tokens: int, extra: list[str]) -> dict[str, float]:
    """One answer in a fresh process: its stats."""
    command = [sys.executable, "-m", "smallthinker", "run", "-m", str(store), "--memory", memory, "--temperature", "0"]
    command += ["--max-tokens", str(tokens), "--ignore-eos", "--stats", "json", *extra, PROMPT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    stats: dict[str, float] = json.loads(result.stderr.splitlines()[-1])
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory", nargs="+", default=["1GiB"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reader", choices=["auto", "mmap", "direct"], default="auto")
    parser.add_argument("--context", type=int, default=4096)
    args = parser.parse_args()

    rows = {}
    extra = ["--reader", args.reader, "--context", str(args.context)]
    for memory in args.memory:
        ceilings, runs = [], []
        for _ in range(args.repeats):  # in turns: a shared disk changes its speed from minute to minute
            make_cold(args.store)
            ceilings.append(disk_bytes_per_sec(args.store, args.reader))
            runs.append(run(args.store, memory, args.tokens, extra))
        ceiling = statistics.median(ceilings)
        median = {key: statistics.median(r[key] for r in runs) for key in (
            "decode_tok_per_sec", "ttft_sec", "hit_rate", "bytes_read_per_token", "peak_memory_bytes", "slots",
        )}  # fmt: skip
        speeds = [r["decode_tok_per_sec"] for r in runs]
        share = median["decode_tok_per_sec"] * median["bytes_read_per_token"] / ceiling
        read = f"{median['bytes_read_per_token'] / MIB:.1f} MiB a token"
        print(
            f"disk {ceiling / 1e9:.2f} GB/s  {memory:>8} {median['decode_tok_per_sec']:6.2f} tokens/s "
            f"({min(speeds):.2f} to {max(speeds):.2f}), {share:.0%} of the disk  hit rate {median['hit_rate']:.0%}, "
            f"{read}  TTFT {median['ttft_sec']:.2f} s  peak {median['peak_memory_bytes'] / MIB:.0f} MiB"
        )
        rows[memory] = median | {
            "decode_tok_per_sec_all": speeds,
            "share_of_disk": share,
            "disk_bytes_per_sec": ceiling,
        }
    settings = {"io_workers": IO_WORKERS, "reader": args.reader, "context": args.context, "tokens": args.tokens}
    print(json.dumps(machine() | settings | {"budgets": rows}))


if __name__ == "__main__":
    main()
