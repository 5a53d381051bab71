"""What single calls cost: attention over a long context, decompressing a record, and how often anything can be done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from smallthinker import _kernels
from smallthinker.cache.kv_ring import QUANTS, KvKind
from smallthinker.expert_store.compression import Compressor, Decompressor
from smallthinker.expert_store.format import Formats
from smallthinker.models.description import Model
from smallthinker.prediction.bench_model import random_record

_TIMED_SEC = 0.01  # of calls, three times
_KEYS = 4096  # in the context for which attention is measured
_CHUNK = 128  # tokens of a prompt at once
_COMPRESSION_LEVEL = 3


def attention_sec(config: Model, pool: _kernels.ThreadPool, kv: KvKind) -> tuple[float, float]:
    """Seconds for each position that one token sees in a layer; the same of a chunk, for each token."""
    mixer = config.layers[0].attention
    heads, kv_heads, dim = mixer.heads, mixer.kv_heads, mixer.head_dim
    quant, rng = QUANTS[kv], np.random.default_rng(0)
    keys = min(_KEYS, -(-config.context // _kernels.KV_GROUP) * _kernels.KV_GROUP)
    group = _kernels.packed_bytes(quant, "tiles", _kernels.KV_GROUP, dim)
    shape = (min(config.num_layers, 16), kv_heads, keys // _kernels.KV_GROUP, group)
    cached = np.zeros((2, *shape), np.uint8)  # zeros: the kernel takes as long for any keys
    cached += 0  # memory of its own, not the system's page of zeros

    def call(tokens: int, seen: int) -> float:
        q, out = rng.standard_normal((tokens, heads, dim), dtype=np.float32), np.empty((tokens, heads, dim), np.float32)
        at = iter(range(1 << 62))
        caches = [(cached[0, i], cached[1, i]) for i in range(len(cached[0]))]
        return _seconds(
            lambda: _kernels.attention(pool, quant, q, *caches[next(at) % len(caches)], seen - tokens, 0, out)
        )

    tokens = min(_CHUNK, keys // 2)
    seen = min(1024, keys)
    short = call(1, min(keys, _kernels.KV_GROUP))
    return max(call(1, keys) - short, 0.0) / keys, call(tokens, seen) / (tokens * (seen - (tokens - 1) / 2))


def compression(config: Model, formats: Formats) -> tuple[float, float]:
    """What is left of a record, and the seconds in which one thread decompresses it. Of a format that only files bring
    there are no weights to try it with: as if nothing came of it."""
    quant = formats.quant
    if not _kernels.can_pack(quant):
        return 1.0, 0.0
    record = random_record(config, formats, np.random.default_rng(0))
    stored = Compressor(quant, _COMPRESSION_LEVEL).stored(record)
    if len(stored) == len(record):
        return 1.0, 0.0
    decompressor, out = Decompressor(quant, len(record)), memoryview(np.empty_like(record).data)
    return len(stored) / len(record), _seconds(lambda: decompressor.decompress(memoryview(stored), out))


def _seconds(call: Callable[[], object]) -> float:
    """Of one call; the median of three tries."""

    def once() -> float:
        call()
        return 1.0

    return 1 / statistics.median(_rates(once))


def ceiling(call: Callable[[], float]) -> float:
    """What calls return, a second, at the best of three tries: nobody else can make it look higher than it is."""
    return max(_rates(call))


def _rates(call: Callable[[], float]) -> list[float]:
    rates = []
    call()
    for _ in range(3):
        done, began = 0.0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < _TIMED_SEC or not done:
            done += call()
        rates.append(done / seconds)
    return rates
