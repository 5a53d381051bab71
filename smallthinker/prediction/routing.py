"""Which experts a simulated run asks for: of a recorded trace, or drawn with a skew.

Owns the drawing, and what a look-ahead would have guessed, which no trace records. Pure functions of a seed.

A router's logits for a token are what the token makes of them plus a bias of each expert, constant within a layer; the
biases' standard deviation is `skew` times that of the rest (`expert_store.skew`; 1.3 is about that of the published
models). The state within the layer before gives nearly the same logits: their token part correlates.

Shape letters: T tokens, L layers, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.expert_store.synthetic.skew import normal_biases
from smallthinker.models.description import Model
from smallthinker.router.trace import Trace, ids_dtype

PUBLISHED_SKEW = 1.3
# Correlation of the token part of a layer's logits with what the same router says after the attention of the layer
# before. At 0.95 it names 77 % of the experts at the 4B shape without skew, 86 % with 1.3, and 80 % at the demo's: as
# measured, 77, 85 and 81 %, see docs/benchmarks.md. Other weights may be guessed better.
LOOK_AHEAD_CORRELATION = 0.95


@dataclass(frozen=True)
class Routing:
    """`ids` [T, L, k]: the experts of each token, best first; `guesses` [T, L, k]: what the layer before names. Of a
    layer that uses fewer than the others, the first ones count."""

    ids: npt.NDArray[Any]
    guesses: npt.NDArray[Any]
    source: str

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[0])


def synthetic_routing(config: Model, tokens: int, skew: float, seed: int = 0) -> Routing:
    """`tokens` independent tokens."""
    layers, experts = config.num_layers, config.experts_per_layer
    k = config.experts_per_token
    rng = np.random.default_rng(seed)
    biases = np.full((layers, experts), -np.inf, np.float32)  # what a layer doesn't have is never among the best
    for layer, count in enumerate(config.experts_of_layers):
        biases[layer, :count] = rng.permutation(normal_biases(count)) * skew if count else 0
    ids = np.empty((tokens, layers, k), ids_dtype(experts))
    guesses = np.empty_like(ids)
    for t in range(tokens):
        own, other = rng.standard_normal((2, layers, experts), dtype=np.float32)
        ids[t] = _best(own + biases, k)
        guesses[t] = _best(_mixed(own, other) + biases, k)
    if not config.routed_layers:
        return Routing(ids, guesses, "none: every token uses all slices")
    return Routing(ids, guesses, f"{tokens} tokens drawn with a skew of {skew:g}")


def traced_routing(trace: Trace, tokens: int, config: Model | None = None, seed: int = 0) -> Routing:
    """The trace's first `tokens`, over again where it has fewer; guesses by the gate values, blurred. config: of the
    traced model, where only some of its layers have routers."""
    k, rng = trace.experts_per_token, np.random.default_rng(seed)
    logits = np.log(np.clip(trace.probs[:tokens].astype(np.float32), 1e-6, 1 - 1e-6))
    bias = logits.mean(0)
    own = logits - bias
    spread = np.maximum(own.std(axis=(0, 2), keepdims=True), 1e-6)
    other = rng.standard_normal(own.shape, dtype=np.float32) * spread
    guesses = _best(_mixed(own, other) + bias, k).astype(trace.ids.dtype)
    again = np.arange(tokens) % len(guesses)
    ids, guesses = trace.ids[again], guesses[again]
    if config is not None and len(config.routed_layers) < config.num_layers:
        ids, guesses = (_among_dense(config, traced) for traced in (ids, guesses))
    return Routing(ids, guesses, f"a trace of {trace.tokens} tokens of {trace.model or 'a model'}")


def _among_dense(config: Model, traced: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The routed layers' experts between the slices of the layers that are dense."""
    shape = (len(traced), config.num_layers, config.experts_per_token)
    ids: npt.NDArray[Any] = np.broadcast_to(np.arange(shape[2], dtype=np.uint16), shape).copy()
    ids[:, config.routed_layers, : traced.shape[2]] = traced
    return ids


def _mixed(own: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rho = LOOK_AHEAD_CORRELATION
    return rho * own + float(np.sqrt(1 - rho**2)) * other


def _best(logits: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]
