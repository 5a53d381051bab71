"""How close to the memory's speed do the kernels run? python bench/kernels.py [--threads N] [--isa NAME]

Prints what reading memory costs with the same threads, then each kernel at the shapes of the 4B model, as a share of
that. Weights are rotated through more memory than the last-level cache holds, as they are in a model, so nothing is
read twice from a cache. Every kernel is timed several times, in turns with the ceiling, and the medians are compared:
another process on the same cores slows both. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from smallthinker import _kernels
from smallthinker.benchmark.environment import machine

# The 4B model: d hidden size, F expert size, k experts a token of E, H query and K key-value heads of size D.
d, F, E, k, H, K, D, VOCAB, LAYERS = 1536, 768, 32, 4, 12, 2, 128, 151_936, 32
DENSE, SLICES = 8960, 7  # the network of a dense model with the same d, in records of about the experts' size
Shape = tuple["_kernels.FfnQuants", int, int, "_kernels.Activation", bool]
KV_QUANTS: tuple[_kernels.KvQuant, ...] = ("f16", "q8_0")
rng = np.random.default_rng(0)


def random_bytes(n: int) -> np.ndarray:
    return rng.integers(0, 256, n, dtype=np.uint8)


def packed(quant: _kernels.Quant, rows: int, cols: int, copies: int) -> list[np.ndarray]:
    """Copies of one random matrix in memory of their own."""
    tile = _kernels.pack(quant, "tiles", rng.standard_normal((min(rows, 4096), cols), dtype=np.float32))
    size = _kernels.packed_bytes(quant, "tiles", rows, cols)
    return [np.resize(tile, size) for _ in range(copies)]


def time_calls(call: Callable[[int], object], min_sec: float = 0.05) -> float:
    """Seconds a call; `call` gets a running number to rotate its weights with."""
    calls, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < min_sec:
        call(calls)
        calls += 1
    return elapsed / calls


class Bench:
    def __init__(self, threads: int, isa: str | None, repeats: int) -> None:
        self.pool = _kernels.ThreadPool(threads, isa)
        self.repeats = repeats
        self.cold = random_bytes(512 << 20)
        self.results: dict[str, dict[str, float]] = {}

    def read_speed(self) -> float:
        """Bytes a second when the pool only reads."""
        pieces = np.split(self.cold, 32)
        return len(pieces[0]) / time_calls(lambda i: _kernels.read_memory(self.pool, pieces[i % 32]))

    def bytes_per_sec(self, name: str, n_bytes: float, call: Callable[[int], object]) -> None:
        """A kernel that is bound by reading `n_bytes` a call."""
        call(0)
        sec, ceiling = [], []
        for _ in range(self.repeats):
            ceiling.append(self.read_speed())
            sec.append(time_calls(call))
        speed = n_bytes / statistics.median(sec)
        share = statistics.median(n_bytes / s / c for s, c in zip(sec, ceiling, strict=True))
        print(f"{name:44} {statistics.median(sec) * 1e6:9.1f} us {speed / 1e9:8.2f} GB/s {share:6.0%} of the ceiling")
        self.results[name] = {"usec": statistics.median(sec) * 1e6, "gb_per_sec": speed / 1e9, "share": share}

    def arithmetic_speed(self, int8: bool) -> float:
        """Multiplications and additions a second when the pool only computes, in f32 or of int8 into int32."""
        done = 0

        def call(_: int) -> None:
            nonlocal done
            done += 2 * _kernels.multiply_add(self.pool, 1 << 25, int8)

        begin = time.perf_counter()
        time_calls(call)
        return done / (time.perf_counter() - begin)

    def ops_per_sec(self, name: str, ops: float, call: Callable[[int], object], *, int8: bool) -> None:
        """A kernel that is bound by its arithmetic: `ops` multiplications and additions a call."""
        call(0)
        sec, ceiling = [], []
        for _ in range(self.repeats):
            ceiling.append(self.arithmetic_speed(int8))
            sec.append(time_calls(call))
        median = statistics.median(sec)
        share = statistics.median(ops / s / c for s, c in zip(sec, ceiling, strict=True))
        kind = "int8" if int8 else "f32"
        print(f"{name:44} {median * 1e6:9.1f} us {ops / median / 1e9:8.1f} GOPS {share:6.0%} of {kind} arithmetic")
        self.results[name] = {"usec": median * 1e6, "gops": ops / median / 1e9, "share": share}

    def linear(self, quant: _kernels.Quant, rows: int, cols: int, tokens: int, label: str) -> None:
        size = _kernels.packed_bytes(quant, "tiles", rows, cols)
        weights = packed(quant, rows, cols, max(1, (384 << 20) // size) if tokens == 1 else 4)
        x = rng.standard_normal((tokens, cols), dtype=np.float32)
        out = np.empty((tokens, rows), np.float32)

        def call(i: int) -> None:
            _kernels.linear(self.pool, quant, weights[i % len(weights)], rows, cols, x, out)

        name = f"linear {quant} {label} [{rows}, {cols}] T={tokens}"
        if tokens == 1:
            self.bytes_per_sec(name, size, call)
        else:
            self.ops_per_sec(name, 2 * tokens * rows * cols, call, int8=True)

    def slots(self, shape: Shape, n: int) -> np.ndarray:
        """Copies of one random record."""
        sections = _kernels.record_sections(*shape)
        total = sections[-1].offset + sections[-1].nbytes
        record = np.zeros(-(-total // 4096) * 4096, np.uint8)
        for section in sections:
            w = rng.standard_normal((section.rows, section.cols), dtype=np.float32)
            record[section.offset : section.offset + section.nbytes] = _kernels.pack(shape[0][0], section.layout, w)
        return np.tile(record, (n, 1))

    def slices(self, quant: _kernels.Quant, width: int, n: int, tokens: int) -> None:
        """A dense network that streams like experts do: every token uses all of n slices."""
        shape: Shape = ((quant,) * 3, d, width // n, "silu", True)
        record_bytes = sum(section.nbytes for section in _kernels.record_sections(*shape))
        slots = self.slots(shape, (384 << 20) // record_bytes // n * n if tokens == 1 else n)
        x = rng.standard_normal((tokens, d), dtype=np.float32)
        out = np.empty((tokens * n, d), np.float32)
        pairs = np.arange(tokens * n, dtype=np.int32).reshape(tokens, n).T.ravel().copy()
        offsets = np.arange(0, (n + 1) * tokens, tokens, dtype=np.int32)

        def call(i: int) -> None:
            slot_ids = ((np.arange(n) + i * n) % len(slots)).astype(np.int32)
            _kernels.experts(self.pool, *shape, x, slots, slot_ids, offsets, pairs, n, out)

        name = f"dense ffn {quant} {d}x{width} in {n} T={tokens}"
        if tokens == 1:
            self.bytes_per_sec(name, n * record_bytes, call)
        else:
            self.ops_per_sec(name, 2 * tokens * 3 * d * width, call, int8=True)

    def experts(self, quant: _kernels.Quant, tokens: int) -> None:
        shape: Shape = ((quant,) * 3, d, F, "relu", True)
        record_bytes = sum(section.nbytes for section in _kernels.record_sections(*shape))
        n_slots = (384 << 20) // record_bytes if tokens == 1 else E
        slots = self.slots(shape, n_slots)
        x = rng.standard_normal((tokens, d), dtype=np.float32)
        out = np.empty((tokens * k, d), np.float32)
        chosen = np.argsort(rng.random((tokens, min(E, n_slots))), axis=1)[:, :k]
        order = np.argsort(chosen.ravel(), kind="stable").astype(np.int32)
        ids, counts = np.unique(chosen, return_counts=True)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        live = 0

        def call(i: int) -> None:
            nonlocal live
            slot_ids = ((np.arange(len(ids)) + i * len(ids)) % n_slots).astype(np.int32)
            live = _kernels.experts(self.pool, *shape, x, slots, slot_ids, offsets, order, k, out)

        call(0)
        name = f"experts {quant} T={tokens} live={live / (tokens * k * F):.0%}"
        if tokens == 1:
            gate_bytes = _kernels.packed_bytes(quant, "tiles", F, d)
            self.bytes_per_sec(name, k * gate_bytes + live * 2 * _kernels.packed_bytes(quant, "rows", 1, d), call)
        else:
            self.ops_per_sec(name, 2 * (tokens * k * F * d + live * 2 * d), call, int8=True)

    def attention(self, quant: _kernels.KvQuant, tokens: int, seen: int) -> None:
        group = _kernels.packed_bytes(quant, "tiles", _kernels.KV_GROUP, D)
        n_bytes = 2 * K * (seen // _kernels.KV_GROUP) * group
        copies = max(1, (384 << 20) // n_bytes) if tokens == 1 else 1
        keys, values = np.zeros((2, copies, K, seen // _kernels.KV_GROUP, group), np.uint8)
        k_new, v_new = rng.standard_normal((2, seen, K, D), dtype=np.float32)
        _kernels.kv_append(self.pool, quant, k_new, v_new, keys[0], values[0], 0)
        keys[1:], values[1:] = keys[0], values[0]
        q = rng.standard_normal((tokens, H, D), dtype=np.float32)
        out = np.empty_like(q)

        def call(i: int) -> None:
            cache = keys[i % copies], values[i % copies]
            _kernels.attention(self.pool, quant, q, *cache, seen - tokens, 0, out)

        name = f"attention {quant} T={tokens} over {seen} keys"
        if tokens == 1:
            self.bytes_per_sec(name, n_bytes, call)
        else:
            self.ops_per_sec(name, 4 * tokens * (seen - (tokens - 1) / 2) * H * D, call, int8=False)

    def elementwise(self, tokens: int) -> None:
        """What runs on one thread between the products."""
        x, out = rng.standard_normal((2, tokens, d), dtype=np.float32)
        q = rng.standard_normal((tokens, H, D), dtype=np.float32)
        k_new = rng.standard_normal((tokens, K, D), dtype=np.float32)
        cos, sin = np.ones((2, tokens, D // 2), np.float32)
        weight = np.ones(d, np.float32)
        self.usec(f"rmsnorm T={tokens}", lambda _: _kernels.rmsnorm(x, weight, 1e-6, out))
        self.usec(f"rope T={tokens} H={H}", lambda _: _kernels.rope(q, cos, sin))
        for quant in KV_QUANTS:
            group = _kernels.packed_bytes(quant, "tiles", _kernels.KV_GROUP, D)
            keys, values = np.zeros((2, K, -(-tokens // _kernels.KV_GROUP), group), np.uint8)
            self.usec(
                f"kv_append {quant} T={tokens}",
                lambda _, quant=quant, keys=keys, values=values: _kernels.kv_append(
                    self.pool, quant, k_new, k_new, keys, values, 0
                ),
            )

    def usec(self, name: str, call: Callable[[int], object]) -> None:
        call(0)
        sec = statistics.median(time_calls(call) for _ in range(self.repeats))
        print(f"{name:44} {sec * 1e6:9.1f} us")
        self.results[name] = {"usec": sec * 1e6}

    def dispatch(self) -> None:
        weights, x, out = packed("q4_0", 32, 32, 1)[0], np.ones((1, 32), np.float32), np.empty((1, 32), np.float32)
        sec = time_calls(lambda i: _kernels.linear(self.pool, "q4_0", weights, 32, 32, x, out))
        print(f"{'smallest call on the pool':44} {sec * 1e6:9.1f} us")
        self.results["smallest call"] = {"usec": sec * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--isa", choices=_kernels.available_isas())
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    bench = Bench(args.threads, args.isa, args.repeats)
    ceiling = statistics.median(bench.read_speed() for _ in range(args.repeats))
    print(f"{'memory read ceiling':44} {'':12} {ceiling / 1e9:8.2f} GB/s  {args.threads} threads, {bench.pool.isa}")
    f32, int8 = (statistics.median(bench.arithmetic_speed(kind) for _ in range(args.repeats)) for kind in (False, True))
    print(f"{'f32 arithmetic ceiling':44} {'':12} {f32 / 1e9:8.1f} GOPS")
    print(f"{'int8 arithmetic ceiling':44} {'':12} {int8 / 1e9:8.1f} GOPS")
    bench.dispatch()
    bench.linear("q4_0", VOCAB, d, 1, "head")
    bench.linear("q4_0", (H + 2 * K) * D, d, 1, "qkv")
    bench.linear("q4_0", d, H * D, 1, "o")
    bench.linear("q8_0", (H + 2 * K) * D, d, 1, "qkv")
    bench.linear("f16", (H + 2 * K) * D, d, 1, "qkv")
    bench.linear("f32", E, d, 1, "router")
    for quant in ("q4_0", "q8_0", "f16"):
        bench.experts(quant, 1)
    for quant in ("q4_0", "q8_0", "f16"):
        bench.slices(quant, DENSE, SLICES, 1)
    bench.linear("q4_0", (H + 2 * K) * D, d, 128, "qkv")
    bench.linear("q8_0", (H + 2 * K) * D, d, 128, "qkv")
    bench.experts("q4_0", 128)
    bench.slices("q4_0", DENSE, SLICES, 128)
    for quant in KV_QUANTS:
        for seen in (256, 4096, 16384):
            bench.attention(quant, 1, seen)
        bench.attention(quant, 128, 1024)
        bench.attention(quant, 256, 4096)
    bench.elementwise(256)

    summary = {
        "threads": args.threads,
        "isa": bench.pool.isa,
        "read_gb_per_sec": ceiling / 1e9,
        "f32_gops": f32 / 1e9,
        "int8_gops": int8 / 1e9,
        "results": bench.results,
    }
    print(json.dumps(machine() | summary))


if __name__ == "__main__":
    main()
