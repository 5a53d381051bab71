"""What could lying together win for experts that are used together? At most what one read of two wins over two reads.

python bench/co_use.py FILE [--mib 96] [--rounds 3]

Random cold places of FILE, of several sizes, alone and twice as large, through the native queue with direct reads: on
this disk, and as emulated ones. Bytes a second of the larger ones over those of the smaller, medians of rounds in
turns: the gain if each neighbour were wanted, too, each time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np

from smallthinker import host
from smallthinker.benchmark.environment import machine
from smallthinker.expert_store.device.cold_reads import read_through
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.records import Records

KIB = 1 << 10
SIZES = (256 * KIB, 512 * KIB, 896 * KIB)  # of a record
DISKS = (None, "nvme", "sata-ssd", "emmc", "sd-card", "hdd")


def bytes_per_sec(path: Path, nbytes: int, total: int, disk: str | None) -> float:
    size = path.stat().st_size
    count = size // nbytes
    records = random.sample(range(count), min(count, max(8, total // nbytes)))
    with path.open("rb") as file:
        for record in records:
            host.drop_file_cache(file.fileno(), record * nbytes, nbytes)
    profile = None if disk is None else load_profile(disk)
    depth = 4 if profile is None else min(4, profile.queue_depth)
    slots = np.frombuffer(host.aligned_buffer(2 * depth * nbytes), np.uint8).reshape(2 * depth, nbytes)
    queue = NativeQueue(
        Records.in_turn(path, size, 0, nbytes, count), slots, "direct",
        chunk_bytes=nbytes, depth=depth, pace=None if profile is None else random_device(profile),
    )  # fmt: skip
    try:
        began = time.perf_counter()
        done = read_through(queue, len(slots), records)
        return done * nbytes / (time.perf_counter() - began)
    finally:
        queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="of some GiB, e.g. a store's experts.safetensors")
    parser.add_argument("--mib", type=int, default=96, help="read each time")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = {}
    for disk in DISKS:
        for nbytes in SIZES:
            total = args.mib << 20 if disk not in ("hdd", "sd-card") else args.mib << 18
            gains = []
            for _ in range(args.rounds):
                alone = bytes_per_sec(args.file, nbytes, total, disk)
                gains.append(bytes_per_sec(args.file, 2 * nbytes, total, disk) / alone)
            name = f"{disk or 'this disk'}, {nbytes // KIB} KiB"
            found[name] = statistics.median(gains)
            print(f"{name}: {found[name]:.2f} times ({min(gains):.2f} to {max(gains):.2f})", flush=True)
    print(json.dumps(machine() | {"gain": found}))


if __name__ == "__main__":
    main()
