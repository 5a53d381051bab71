"""The bound calls for the next tokens of one or a few sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import bits, normal, seeds
from test_expert_kernels import Layer
from test_kernel_arguments import POOL, SECTIONS, call, u8, zeros

from smallthinker import _kernels


@given(st.sampled_from(["q4_0", "q8_0", "f16"]), st.integers(1, 9), st.integers(1, 3), seeds)
def test_experts_of_several_tokens_add_up_as_those_of_each_alone(
    quant: _kernels.Quant, tokens: int, k: int, seed: int
) -> None:
    layer, pool = Layer.random(quant, 64, 96, 4, seed), _kernels.ThreadPool(2)
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.permutation(4)[:k] for _ in range(tokens)])
    normed, weights = normal(seed + 100, tokens, 64), normal(seed + 101, tokens, k)
    x = normal(seed + 102, tokens, 64)
    bound = _kernels.TokenExperts(pool, quant, 64, 96, k, layer.slots)
    alone, live = x.copy(), 0
    for t in range(tokens):
        live += bound.add(alone[t : t + 1], normed[t : t + 1], chosen[t].tolist(), weights[t : t + 1])
    experts = np.unique(chosen).tolist()
    pairs = [np.flatnonzero(chosen.ravel() == expert).tolist() for expert in experts]
    together = x.copy()
    assert bound.add_several(together, normed, experts, pairs, weights) == live
    assert np.array_equal(bits(together), bits(alone))
    landed = x.copy()
    for expert, of_expert in reversed(list(zip(experts, pairs, strict=True))):
        bound.compute_several(normed, [of_expert], [expert])
    bound.combine(landed, weights)
    assert np.array_equal(bits(landed), bits(alone))


@pytest.mark.parametrize("slots", [[0], [0, 1, 2], [0, 3], [-1, 0]])
def test_slots_that_are_not_there_are_refused(slots: list[int]) -> None:
    with pytest.raises(ValueError, match="slots"):
        call("token_experts.add", slots=slots)
    with pytest.raises(ValueError, match="slots"):
        call("token_experts.add_several", slots=slots)


@pytest.mark.parametrize("pairs", [[[0, 2, 4]], [[0], [-1]], [[0], [6]]])
def test_pairs_that_are_not_there_are_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        call("token_experts.add_several", pairs=pairs)


def test_more_tokens_than_were_computed_cannot_be_combined() -> None:
    experts = _kernels.TokenExperts(POOL, "q4_0", 64, 32, 2, zeros(3, SECTIONS[2], dtype=u8))
    experts.compute_several(zeros(2, 64), [[0, 2], [1, 3]], [0, 1])
    with pytest.raises(ValueError, match="x: expected at most"):
        experts.combine(zeros(3, 64), zeros(3, 2))


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match="layer"):
        call("token_router.route", layer=layer)
