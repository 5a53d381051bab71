"""Rotary positions of a whole model: the angles that its layers need, computed once a step for all of them.

Owns the frequencies, in float64, one set for each distinct `Rope`. Knows nothing of layers; the kernels rotate.

LongRoPE has other factors for sequences that exceed what the model was first trained on. Keys that are in a cache were
rotated once, so an engine can't change its mind in the middle of a sequence: the long factors are taken for all
positions where the planned context exceeds `original_context`, the short ones where it doesn't.

Shape letters: T tokens, P pairs of all distinct `Rope`s, side by side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.models.description import (
    Attention,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Model,
    Rope,
    YarnScaling,
)

Floats = npt.NDArray[np.float32]


class RotaryTable:
    """Of a model whose sequences are planned for `context` positions. first_pair: in which column a `Rope` begins."""

    def __init__(self, model: Model, context: int) -> None:
        self.first_pair: dict[Rope, int] = {}
        freqs: list[float] = []
        factors: list[float] = []
        for rope in _ropes(model):
            self.first_pair[rope] = len(freqs)
            of_rope, factor = frequencies(rope, context)
            freqs += of_rope
            factors += [factor] * len(of_rope)
        self._frequencies, self._factors = np.array(freqs, np.float64), np.array(factors, np.float64)

    def angles(self, positions: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Positions [T] -> cos and sin [T, P], as `AttentionLayer` takes them."""
        cos, sin = np.empty((2, len(positions), len(self._frequencies)), np.float32)
        _kernels.rope_angles(positions, self._frequencies, self._factors, cos, sin)
        return cos, sin


def frequencies(rope: Rope, context: int) -> tuple[list[float], float]:
    """Radians a position of each pair, and what cos and sin are multiplied by; `reference.frequencies` in plain
    floats."""
    freqs = [rope.theta ** -(i / (rope.over or rope.size)) for i in range(0, rope.size, 2)]
    if rope.turning is not None:
        freqs[rope.turning :] = [0.0] * (len(freqs) - rope.turning)
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return [freq / scaling.factor for freq in freqs], 1.0
    if isinstance(scaling, Llama3Scaling):
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = [_within_one((scaling.original_context * freq / (2 * math.pi) - low) / (high - low)) for freq in freqs]
        return [_blend(freq / scaling.factor, freq, share) for freq, share in zip(freqs, kept, strict=True)], 1.0
    if isinstance(scaling, YarnScaling):
        low, high = (_dimension(rope, scaling, turns) for turns in (scaling.beta_fast, scaling.beta_slow))
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.size - 1)
        ramp = [_within_one((i - low) / max(high - low, 1e-3)) for i in range(len(freqs))]
        blended = [_blend(freq, freq / scaling.factor, share) for freq, share in zip(freqs, ramp, strict=True)]
        return blended, scaling.attention_factor
    if isinstance(scaling, LongRopeScaling):
        factors = scaling.long if context > scaling.original_context else scaling.short
        return [freq / factor for freq, factor in zip(freqs, factors, strict=True)], scaling.attention_factor
    return freqs, 1.0


def uses_long_factors(model: Model, context: int) -> bool:
    """Whether keys of sequences planned for `context` positions are rotated by LongRoPE's long factors."""
    scalings = (rope.scaling for rope in _ropes(model))
    return any(isinstance(s, LongRopeScaling) and context > s.original_context for s in scalings)


def _ropes(model: Model) -> list[Rope]:
    """The distinct ones, in the order of layers."""
    mixers = (layer.mixer for layer in model.layers)
    return list(dict.fromkeys(mixer.rope for mixer in mixers if isinstance(mixer, Attention) and mixer.rope))


def _dimension(rope: Rope, scaling: YarnScaling, turns: float) -> float:
    """The pair that turns so often within the original context."""
    ratio = scaling.original_context / (turns * 2 * math.pi)
    return rope.size * math.log(ratio) / (2 * math.log(rope.theta))


def _within_one(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _blend(a: float, b: float, share: float) -> float:
    """a, or b where the share is 1."""
    return a * (1 - share) + b * share
