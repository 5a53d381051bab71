"""Bits per byte on the held-out books, and how unevenly experts are used, measured with the engine on a store.

Every token is predicted from at least half a context of text before it, except at the very beginning. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from smallthinker.arithmetic import Route
from smallthinker.engine import Engine
from smallthinker.forward import Observers

CONTEXT, STRIDE = 1024, 512


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """logits [T, V], targets [T] -> their summed negative log-likelihood in nats."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(-1))
    return float((log_z - shifted[np.arange(len(targets)), targets]).sum())


class UseCounter:
    """Counts experts as the engine's router picks them: one row a layer."""

    def __init__(self, engine: Engine) -> None:
        config = engine.config
        self.counts = np.zeros((config.num_layers, config.experts_per_layer), np.int64)
        self.tokens = 0
        engine.observe(Observers(routed=self._count))

    def _count(self, layer: int, x: np.ndarray, route: Route) -> None:
        self.counts[layer] += np.bincount(route.ids.ravel(), minlength=self.counts.shape[1])
        self.tokens += len(x) if layer == 0 else 0

    def shares(self) -> np.ndarray:
        """The share of tokens that use each expert, all layers, ascending."""
        return np.sort(self.counts.ravel() / self.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("data", type=Path, help="folder that data.py wrote")
    parser.add_argument("--tokens", type=int, help="only so many of the held-out tokens")
    args = parser.parse_args()
    held_out = np.load(args.data / "held_out.npy").astype(np.int64)
    sizes = json.loads((args.data / "sizes.json").read_text())["held_out"]
    bytes_per_token = sizes["bytes"] / sizes["tokens"]
    if args.tokens:
        held_out = held_out[: args.tokens]

    nats, predicted = 0.0, 0
    with Engine(args.store) as engine:
        use = UseCounter(engine)
        for start in range(0, len(held_out) - 1, STRIDE):
            window = held_out[max(0, start + STRIDE - CONTEXT) : start + STRIDE + 1]
            targets = held_out[start + 1 : start + STRIDE + 1]
            logits = engine.all_logits(window[:-1].tolist())[-len(targets) :]
            nats += negative_log_likelihood(logits, targets)
            predicted += len(targets)
    shares = use.shares()
    quarter = len(shares) // 4
    print(
        json.dumps(
            {
                "tokens": predicted,
                "nats_per_token": round(nats / predicted, 4),
                "bits_per_byte": round(nats / predicted / math.log(2) / bytes_per_token, 4),
                "experts": len(shares),
                "experts_used_by_under_14_percent": round(float((shares < 0.14).mean()), 3),
                "mean_use_of_the_top_quarter": round(float(shares[-quarter:].mean()), 3),
                "most_used": round(float(shares[-1]), 3),
                "least_used": round(float(shares[0]), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
