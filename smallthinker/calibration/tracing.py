"""Watches an engine while sequences run through it, and records which experts its router asks for.

Owns the way from token ids to what observers see, and to a Trace. Knows nothing about trace files or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker.arithmetic import Route
from smallthinker.demo import folder_name
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.expert_store.format import CONFIG_FILE
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.forward import Observers
from smallthinker.models.registry import read_model
from smallthinker.models.tensors import ROUTER_BIAS
from smallthinker.router.trace import RARELY, ExpertUsage, Trace, ids_dtype, usage

# One chunk, so that each expert is read once however few slots there are; 21B then takes seconds and little memory.
RANDOM_TOKENS = 512
RANDOM_SLOTS = 16

Floats = npt.NDArray[np.float32]


def gate_values(logits: Floats, gating: str) -> Floats:
    """Router logits [T, E] -> the gate values of all experts, in place: softmax over E, or each one's sigmoid."""
    if gating == "softmax":
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        return logits
    np.exp(-np.clip(logits, -80, 80, out=logits), out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def run_observed(engine: Engine, sequences: Iterable[Sequence[int]], observers: Observers) -> None:
    """Prefill each sequence, begun with an empty context and at most the planned context long, before these observers;
    they are gone afterwards. Raises what `Engine.prefill` raises."""
    engine.observe(observers)
    try:
        for sequence in sequences:
            engine.forget()
            engine.prefill(sequence)
    finally:
        engine.observe(None)


def record(engine: Engine, sequences: Sequence[Sequence[int]], progress: Progress | None = None) -> Trace:
    """The routing of token sequences, in the layers that have a router; each is begun with an empty context and at most
    the planned context long.

    Raises RequestError without any token, and what `Engine.prefill` raises.
    """
    config, done = engine.config, progress or silent
    sequences = [sequence for sequence in sequences if sequence]
    total = sum(map(len, sequences))
    if total == 0:
        raise RequestError("trace: expected at least one token, found none; give a text that is not empty")
    config.check_routed("trace")
    routed = config.routed_layers
    experts, k = config.experts_of_layers[routed[0]], config.used_of_layers[routed[0]]
    ids = np.empty((total, len(routed), k), ids_dtype(experts))
    probs = np.empty((total, len(routed), experts), np.float16)
    row_of = {layer: row for row, layer in enumerate(routed)}
    routers = {layer: (engine.router_weights(layer), _logits_bias(engine, layer)) for layer in routed}
    at = 0

    def observe(layer: int, x: Floats, route: Route) -> None:
        nonlocal at
        if layer not in row_of:  # dense: all of it, always
            return
        weights, bias = routers[layer]
        ids[at : at + len(x), row_of[layer]] = route.ids[:, :k]
        probs[at : at + len(x), row_of[layer]] = gate_values(x @ weights.T + bias, config.layers[layer].router.score)
        if layer == routed[-1]:
            at += len(x)
            done(at, total, "tokens")

    run_observed(engine, sequences, Observers(routed=observe))
    starts = np.cumsum([0, *map(len, sequences)], dtype=np.int64)[:-1]
    return Trace(ids, probs, starts, engine.store.record_bytes, folder_name(engine.store.path))


def whole_layers(engine: Engine, sequences: Sequence[Sequence[int]]) -> Trace:
    """The same of a dense model, of which each token uses all slices; nothing is computed for it."""
    config, total = engine.config, sum(map(len, sequences))
    shape = (total, config.num_layers, config.experts_per_token)
    ids = np.broadcast_to(np.arange(shape[2], dtype=ids_dtype(shape[2])), shape)
    starts = np.cumsum([0, *map(len, sequences)], dtype=np.int64)[:-1]
    return Trace(ids, np.ones(shape, np.float16), starts, engine.store.record_bytes, folder_name(engine.store.path))


def _logits_bias(engine: Engine, layer: int) -> Floats:
    """What a router adds to its logits, [E] or one zero; not what it only chooses by."""
    if engine.config.layers[layer].router.bias != "logits":
        return np.zeros(1, np.float32)
    return engine.store.dense(f"layers.{layer}.{ROUTER_BIAS}").astype(np.float32, copy=False)


def split(tokens: Sequence[int], longest: int) -> list[Sequence[int]]:
    """Sequences of at most `longest` tokens, in order."""
    return [tokens[at : at + longest] for at in range(0, len(tokens), longest)]


def random_usage(path: Path, seed: int, progress: Progress | None = None) -> tuple[int, ExpertUsage]:
    """How a store's router uses the experts for random tokens -> how many tokens there were, and the figures.

    Raises a SmallThinkerError where the store can't be run, MemoryBudgetError above all.
    """
    config = read_model(path / CONFIG_FILE, in_store=True)
    n = min(RANDOM_TOKENS, config.context)
    slots = max(RANDOM_SLOTS, config.experts_per_token)
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=n).tolist()
    with Engine(path, context=n, chunk=n, max_slots=slots) as engine:
        trace = record(engine, [tokens], progress)
    return n, usage(trace.ids, trace.starts, trace.experts)


def usage_text(use: ExpertUsage) -> str:
    text = (
        f"{use.rarely_used:.0%} of the experts used by under {RARELY:.0%} of the tokens, the top quarter by "
        f"{use.top_quarter:.0%} (even: {use.even:.1%})"
    )
    if use.repeated is not None:
        text += f"; {use.repeated:.0%} of a token's experts in common with the token before"
    return text.replace("%", " %")
