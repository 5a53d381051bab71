"""What does a KV cache of 8 bits change? python bench/kv_error.py [STORE] [--tokens N]

Runs the same tokens through an engine with a cache in f16 and one in q8 (default: the bundled demo model, on text that
it writes itself) and compares the logits at every position: their difference relative to the range of the position's
logits, the Kullback-Leibler divergence of what they say about the next token, and how often the likeliest token is the
same. Every token before a position has been through the cache, so errors add up over layers and positions as they do
in use. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker.benchmark.environment import machine
from smallthinker.cache.kv_ring import KvKind
from smallthinker.engine import Engine
from smallthinker.llm import DEMO_STORE

KINDS: tuple[KvKind, KvKind] = ("f16", "q8")
F64 = npt.NDArray[np.float64]


def written_by(store: Path, count: int, seed: int) -> list[int]:
    """Text of the model's own, drawn at temperature 1: tokens as it would meet them."""
    rng = np.random.default_rng(seed)
    with Engine(store, context=count) as engine:
        tokens = engine.tokenizer.encode("Once upon a time")[:count]
        logits = engine.prefill(tokens)[0]
        while len(tokens) < count:
            p = np.exp(log_softmax(logits.astype(np.float64)))
            tokens.append(int(rng.choice(len(p), p=p / p.sum())))
            if len(tokens) < count:
                logits = engine.decode(tokens[-1])
    return tokens


def log_softmax(logits: F64) -> F64:
    shifted = logits - logits.max(-1, keepdims=True)
    result: F64 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def logits_of(store: Path, kind: KvKind, tokens: list[int]) -> tuple[F64, int]:
    """Logits [T, V], and the bytes of the cache that they went through."""
    with Engine(store, kv=kind, context=len(tokens)) as engine:
        return engine.all_logits(tokens).astype(np.float64), engine.plan.kv_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path, nargs="?", default=DEMO_STORE)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokens = written_by(args.store, args.tokens, args.seed)
    (exact, f16_bytes), (rounded, q8_bytes) = (logits_of(args.store, kind, tokens) for kind in KINDS)
    error = np.abs(rounded - exact) / (exact.max(-1) - exact.min(-1))[:, None]
    p, q = log_softmax(exact), log_softmax(rounded)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    same = float((exact.argmax(-1) == rounded.argmax(-1)).mean())
    print(f"KV cache of {len(tokens)} tokens: f16 {f16_bytes:,} bytes, q8 {q8_bytes:,} ({q8_bytes / f16_bytes:.0%})")
    print(f"logit error, of the position's range: largest {error.max():.2%}, mean {error.mean():.3%}")
    print(f"KL divergence, nats: largest {divergence.max():.2e}, mean {divergence.mean():.2e}")
    print(f"likeliest token the same: {same:.1%} of {len(tokens)} positions")
    result = {
        "store": args.store.name,
        "tokens": len(tokens),
        "f16_bytes": f16_bytes,
        "q8_bytes": q8_bytes,
        "largest_error": float(error.max()),
        "mean_error": float(error.mean()),
        "largest_kl": float(divergence.max()),
        "mean_kl": float(divergence.mean()),
        "top1_agreement": same,
    }
    print(json.dumps(machine() | result))


if __name__ == "__main__":
    main()
