"""How fast does a store take in a prompt, all of it in memory, beside what its kernels reach and beside llama.cpp?

python bench/prefill.py STORE [--threads N] [--tokens 512] [--llama-bench PATH --gguf FILE]

As in llama-bench's pp test: one prompt of random token ids into an empty context. The practical peak is the dense
product of the store's weight format at the model's width, 256 tokens at once, measured between the rounds; a prompt's
operations are those of its weights (of experts, the live neurons' only), attention's own left out. The last line is
JSON.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
from throughput import arguments, live_share, random_tokens, take_turns, warm_engine

from smallthinker import _kernels
from smallthinker.benchmark.environment import machine
from smallthinker.engine import Engine

PEAK_ROWS, PEAK_TOKENS = 4096, 256


def prompt_ops(engine: Engine, tokens: int, live: float) -> float:
    """Multiplications and additions of a prompt's weights when `live` of its experts' neurons are."""
    c = engine.config
    mixers = [layer.attention for layer in c.layers]
    attention = sum(c.hidden_size * m.head_dim * 2 * (m.heads + m.kv_heads) for m in mixers) / c.num_layers
    router = sum(c.hidden_size * n.router.experts for n in (layer.ffn for layer in c.layers) if n and n.router)
    experts = c.experts_per_token * c.ffn_width * c.hidden_size * (1 + 2 * live)
    chunks = -(-tokens // engine.plan.chunk)  # the head runs for the last token of each
    return 2 * (tokens * (c.num_layers * (attention + experts) + router) + chunks * c.vocab_size * c.hidden_size)


class Peak:
    """Operations a second of a dense product."""

    def __init__(self, engine: Engine, threads: int, rng: np.random.Generator) -> None:
        self._pool, self._quant, self._cols = (
            _kernels.ThreadPool(threads),
            engine.store.quant,
            engine.config.hidden_size,
        )
        w = rng.standard_normal((PEAK_ROWS, self._cols), dtype=np.float32)
        self._weights = _kernels.pack(self._quant, "tiles", w)
        self._x = rng.standard_normal((PEAK_TOKENS, self._cols), dtype=np.float32)
        self._out = np.empty((PEAK_TOKENS, PEAK_ROWS), np.float32)

    def measure(self, calls: int = 4) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            _kernels.linear(self._pool, self._quant, self._weights, PEAK_ROWS, self._cols, self._x, self._out)
        return calls * 2 * PEAK_TOKENS * PEAK_ROWS * self._cols / (time.perf_counter() - began)


def main() -> None:
    args = arguments(__doc__, 512, "tokens of the prompt")
    rng, tokens = np.random.default_rng(args.seed), int(args.tokens)
    with warm_engine(args) as engine:
        live = live_share(lambda: engine.prefill(random_tokens(engine, rng, tokens)), engine)
        ops = prompt_ops(engine, tokens, live)
        peak, peaks = Peak(engine, args.threads, rng), []

        def run() -> float:
            peaks.append(peak.measure())
            prompt = random_tokens(engine, rng, tokens)
            began = time.perf_counter()
            _, reused = engine.prefill(prompt)
            assert reused == 0, "the prompt begins as the one before it: take another --seed"
            return tokens / (time.perf_counter() - began)

        run()  # once for the page tables
        peaks.clear()
        before = engine.clocks()
        speeds = take_turns(args, run, tokens, 0)
        clocks = engine.clocks() - before
        isa, chunk, quant = engine.isa, engine.plan.chunk, engine.store.quant
    reached = [speed * ops / tokens for speed in speeds["tok_per_sec_all"]]
    share = statistics.median(r / p for r, p in zip(reached, peaks, strict=True))
    print(
        f"{statistics.median(reached) / 1e9:.0f} GOPS ({live:.0%} of the neurons live), {share:.0%} of the "
        f"{statistics.median(peaks) / 1e9:.0f} of a dense {quant} product of {PEAK_TOKENS} tokens; "
        f"Python {clocks.python_sec / clocks.wall_sec:.0%} of the time"
    )
    facts = {
        "threads": args.threads,
        "isa": isa,
        "tokens": tokens,
        "chunk": chunk,
        "live_share": live,
        "gops": statistics.median(reached) / 1e9,
        "practical_peak_gops": statistics.median(peaks) / 1e9,
        "share_of_peak": share,
        "profile": clocks.to_dict(),
    }
    print(json.dumps(machine() | speeds | facts))


if __name__ == "__main__":
    main()
