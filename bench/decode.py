"""How fast does a store decode, all of it in memory, beside what memory allows and beside llama.cpp?

python bench/decode.py STORE [--threads N] [--tokens 64] [--llama-bench PATH --gguf FILE]

As in llama-bench's tg test: from an empty context, one token at a time, random token ids, no sampling. The ceiling is
the memory's read speed, measured between the rounds, over the bytes that a token can't do without: all dense weights
(of an embedding that isn't the head too, one row: nothing) and the chosen experts, behind a ReLU their gates and the
live neurons' rows. The KV cache of so short a context is left out. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
from throughput import (
    READ_BYTES,
    arguments,
    has_dead_neurons,
    live_share,
    random_tokens,
    read_bytes_per_sec,
    take_turns,
    warm_engine,
)

from smallthinker import _kernels
from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine


def decode(engine: Engine, tokens: list[int]) -> float:
    """Seconds for all tokens, the first into an empty KV cache."""
    began = time.perf_counter()
    engine.prefill(tokens[:1])
    for token in tokens[1:]:
        engine.decode(token)
    return time.perf_counter() - began


def token_bytes(engine: Engine, live: float) -> float:
    """Bytes of weights that a token must touch when `live` of its experts' neurons are."""
    c, quant = engine.config, engine.store.quant
    embedding = 0 if c.head.tied else engine.store.dense("embed_tokens").nbytes
    expert: float = engine.store.record_bytes
    if has_dead_neurons(engine):
        gate = _kernels.packed_bytes(quant, "tiles", c.ffn_width, c.hidden_size)
        expert = gate + 2 * live * c.ffn_width * _kernels.packed_bytes(quant, "rows", 1, c.hidden_size)
    return engine.store.dense_bytes - embedding + c.num_layers * c.experts_per_token * expert


def main() -> None:
    args = arguments(__doc__, 64, "tokens of a run, from an empty context")
    rng, tokens = np.random.default_rng(args.seed), int(args.tokens)
    with warm_engine(args) as engine:
        live = live_share(lambda: decode(engine, random_tokens(engine, rng, tokens)), engine)
        needed = token_bytes(engine, live)
        pool, data = _kernels.ThreadPool(args.threads), np.full(READ_BYTES, 1, np.uint8)
        reads = []

        def run() -> float:
            reads.append(read_bytes_per_sec(pool, data))
            return tokens / decode(engine, random_tokens(engine, rng, tokens))

        run()  # once for the page tables
        reads.clear()
        before = engine.clocks()
        speeds = take_turns(args, run, 0, tokens)
        clocks = engine.clocks() - before
        isa = engine.isa
    read = statistics.median(reads)
    ceiling = read / needed
    share = statistics.median(speed * needed / r for speed, r in zip(speeds["tok_per_sec_all"], reads, strict=True))
    print(
        f"ceiling: {ceiling:8.2f} tokens/s: {needed / 2**20:.1f} MiB a token ({live:.0%} of the neurons live) at "
        f"{read / 1e9:.1f} GB/s; reached {share:.0%}; Python {clocks.python_sec / clocks.wall_sec:.0%} of the time"
    )
    facts = {
        "threads": args.threads,
        "isa": isa,
        "tokens": tokens,
        "live_share": live,
        "token_bytes": needed,
        "read_bytes_per_sec": read,
        "ceiling_tok_per_sec": ceiling,
        "share_of_ceiling": share,
        "profile": clocks.to_dict(),
    }
    print(json.dumps(machine() | speeds | facts))


if __name__ == "__main__":
    main()
