"""How fast are weights of each format? python bench/formats.py [--threads N] [--isa NAME] [FORMAT ...]

Products of one token (bytes of weights a second, which reading bounds) and of 128 (multiplications a second), each as
a share of q4_0's. Weights are rotated through more memory than the last-level cache holds. Formats take turns, and
medians are compared: another process on the same cores slows all. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np

from smallthinker import _kernels
from smallthinker.benchmark.environment import machine

ROWS, COLS = 2048, 2560
TOTAL_BYTES = 192 << 20
BASE = "q4_0"
rng = np.random.default_rng(0)


def weights(quant: _kernels.Quant) -> list[np.ndarray]:
    """Copies of a matrix; of formats that only files bring one byte again and again, which takes as long."""
    size = _kernels.packed_bytes(quant, "tiles", ROWS, COLS)
    if _kernels.can_pack(quant):
        group = _kernels.pack(quant, "tiles", rng.standard_normal((64, COLS), dtype=np.float32))
    else:
        group = np.full(64, 0x33, np.uint8)
    return [np.resize(group, size) for _ in range(max(1, TOTAL_BYTES // size))]


def seconds(pool: _kernels.ThreadPool, quant: _kernels.Quant, of: list[np.ndarray], tokens: int) -> float:
    """Of one product."""
    x, out = rng.standard_normal((tokens, COLS), dtype=np.float32), np.empty((tokens, ROWS), np.float32)
    begin = time.perf_counter()
    count = len(of) if tokens == 1 else 8
    for data in of[:count]:
        _kernels.linear(pool, quant, data, ROWS, COLS, x, out)
    return (time.perf_counter() - begin) / min(count, len(of))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--isa")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("formats", nargs="*", default=[q for q, (block, _) in _kernels.formats().items() if block > 1])
    args = parser.parse_args()
    pool = _kernels.ThreadPool(args.threads, args.isa)
    names = [BASE, *(name for name in args.formats if name != BASE)]
    matrices = {name: weights(name) for name in names}
    sec: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.repeats):
        for name in names:
            for tokens in (1, 128):
                sec.setdefault((name, tokens), []).append(seconds(pool, name, matrices[name], tokens))
    figures = {}
    for name in names:
        one, many = (statistics.median(sec[name, tokens]) for tokens in (1, 128))
        figures[name] = (matrices[name][0].nbytes / one / 1e9, ROWS * COLS * 128 / many / 1e9)
    for name, (gb, gmul) in figures.items():
        shares = gb / figures[BASE][0], gmul / figures[BASE][1]
        print(f"{name:7} {gb:6.2f} GB/s {shares[0]:5.0%} of {BASE}'s   {gmul:7.1f} G/s {shares[1]:5.0%}")
    print(json.dumps({"machine": machine(), "isa": pool.isa, "threads": args.threads, "gb_and_g_a_sec": figures}))


if __name__ == "__main__":
    main()
