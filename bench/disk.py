"""What does this disk give? python bench/disk.py STORE

Random cold records through the native queue, by each way of reading, size of request and number in flight, beside the
raw ceiling: a plain loop of direct reads of whole records on one thread. In turns, because a shared disk changes from
second to second; medians. `cpu` is this process's processor time per second of reading. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.benchmark.environment import machine
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.cold_reads import read_through
from smallthinker.expert_store.device.probe import probe
from smallthinker.expert_store.native_queue import NativeKind, NativeQueue
from smallthinker.expert_store.store import Store

KIB = 1 << 10
Sample = tuple[float, float]  # bytes per second, processor seconds per second


class Records:
    """Random records, each taken out of the page cache before it is given."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._order = random.sample(range(store.num_experts), store.num_experts)
        self._at = 0

    def take(self, count: int) -> list[int]:
        with self._store.experts_file.path.open("rb") as file:
            taken = [self._order[(self._at + i) % len(self._order)] for i in range(min(count, len(self._order)))]
            for record in taken:
                host.drop_file_cache(file.fileno(), self._store.record_offset(record), self._store.record_bytes)
        self._at += count
        return taken


def plain(store: Store, slots: npt.NDArray[np.uint8], records: list[int]) -> Sample:
    """One read after the other, no queue. Into all slots in turn: one alone would stay in the processor's cache."""
    fd = host.open_direct(store.experts_file.path)
    if fd is None:
        sys.exit("no direct reads here")
    cpu, began = time.process_time(), time.perf_counter()
    for i, record in enumerate(records):
        host.read_at(fd, slots[i % len(slots)].data, store.record_offset(record))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    os.close(fd)
    return len(records) * store.record_bytes / seconds, cpu / seconds


def queued(
    store: Store, slots: npt.NDArray[np.uint8], kind: NativeKind, chunk_bytes: int, depth: int, records: list[int]
) -> Sample:
    queue = NativeQueue(store, slots, kind, chunk_bytes=chunk_bytes, depth=depth, verify="never")
    cpu, began = time.process_time(), time.perf_counter()
    read_through(queue, len(slots), records)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    queue.close()
    return len(records) * store.record_bytes / seconds, cpu / seconds


def make_slots(store: Store, count: int) -> npt.NDArray[np.uint8]:
    nbytes = count * store.record_bytes
    slots = np.frombuffer(host.aligned_buffer(nbytes), np.uint8, nbytes).reshape(count, -1)
    slots.fill(0)  # a page's first touch is dear, and not the disk's doing
    return slots


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["direct", "mmap", "buffered"])
    parser.add_argument("--chunks-kib", nargs="+", type=int, default=[256, 512, 1024, 0], help="0: whole records")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", type=int, default=16, help="of one measurement")
    args = parser.parse_args()

    with Store.open(args.store) as store:
        records = Records(store)
        points = [
            (kind, (chunk * KIB) or store.record_bytes, depth)
            for kind in args.kinds
            for chunk in args.chunks_kib
            for depth in args.depths
        ]
        samples: dict[tuple[NativeKind, int, int], list[Sample]] = {point: [] for point in points}
        ceiling: list[Sample] = []
        slots = make_slots(store, max(args.depths) + 4)
        for _ in range(args.repeats):
            ceiling.append(plain(store, slots, records.take(args.records)))
            for point in random.sample(points, len(points)):
                try:
                    samples[point].append(queued(store, slots, *point, records.take(args.records)))
                except StoreReadError as e:
                    print(f"{point[0]}: {e}", file=sys.stderr)
        raw = median(ceiling)
        print(f"plain loop of whole records: {raw[0] / 1e9:.2f} GB/s, cpu {raw[1]:.0%}")
        rows = []
        for (kind, chunk, depth), found in samples.items():
            if found:
                speed, cpu = median(found)
                print(
                    f"{kind:>8} {chunk // KIB:5} KiB x {depth}  {speed / 1e9:5.2f} GB/s  "
                    f"{speed / raw[0]:4.0%} of the loop  cpu {cpu:.0%}"
                )
                rows.append({"kind": kind, "chunk_bytes": chunk, "depth": depth, "bytes_per_sec": speed, "cpu": cpu})
        profile = probe(store).to_dict()
        print(f"probe: {profile}")
        settings = {"record_bytes": store.record_bytes, "repeats": args.repeats, "records": args.records}
        ceiling_row = {"plain_bytes_per_sec": raw[0], "plain_cpu": raw[1]}
        print(json.dumps(machine() | settings | ceiling_row | {"points": rows, "probe": profile}))


def median(samples: list[Sample]) -> Sample:
    return statistics.median(s[0] for s in samples), statistics.median(s[1] for s in samples)


if __name__ == "__main__":
    main()
