"""The replay: no policy beats the optimum, and the optimum is what trying everything finds."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.cache.policies import LRU, POLICIES
from smallthinker.cache.replay import Replay, hits, optimal_hits, replay


def routing(seed: int, tokens: int, layers: int, experts: int, k: int) -> np.ndarray:
    """ids [T, L, k] of a skewed router."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(layers, experts)) + rng.normal(size=(tokens, layers, experts))
    return np.argsort(-logits, 2)[:, :, :k]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 9999),
    tokens=st.integers(1, 30),
    layers=st.integers(1, 4),
    experts=st.integers(2, 8),
    k=st.integers(1, 3),
    more=st.integers(0, 30),
)
def test_no_policy_beats_the_optimum(seed: int, tokens: int, layers: int, experts: int, k: int, more: int) -> None:
    k = min(k, experts)
    ids = routing(seed, tokens, layers, experts, k)
    found = replay(ids, experts, k + more)
    assert set(found.hit_rates) == set(POLICIES)
    assert all(0 <= rate <= found.optimum + 1e-12 for rate in found.hit_rates.values())
    if k + more >= layers * experts:  # then only first uses miss
        distinct = sum(len(np.unique(ids[:, layer])) for layer in range(layers))
        assert all(rate * ids.size == pytest.approx(ids.size - distinct) for rate in found.hit_rates.values())
        assert found.optimum * ids.size == pytest.approx(ids.size - distinct)


def most_hits(requests: list[frozenset[int]], slots: int) -> int:
    """By trying every choice of what to evict."""

    @cache
    def best(at: int, resident: frozenset[int]) -> int:
        if at == len(requests):
            return 0
        wanted = requests[at]
        others = sorted(resident - wanted)
        room = slots - len(wanted)
        kept = combinations(others, min(room, len(others)))
        return len(wanted & resident) + max(best(at + 1, wanted | frozenset(keep)) for keep in kept)

    return best(0, frozenset())


@settings(max_examples=80)
@given(
    seed=st.integers(0, 9999),
    shape=st.sampled_from([(6, 2, 3, 1), (5, 2, 3, 2), (7, 1, 5, 2), (4, 3, 3, 1), (9, 1, 4, 1)]),
    more=st.integers(0, 3),
)
def test_the_optimum_is_what_trying_everything_finds(seed: int, shape: tuple[int, int, int, int], more: int) -> None:
    tokens, layers, experts, k = shape
    ids = routing(seed, tokens, layers, experts, k)
    requests = [
        frozenset(layer * experts + expert for expert in chosen)
        for token in ids.tolist()
        for layer, chosen in enumerate(token)
    ]
    assert optimal_hits(ids, experts, k + more) == most_hits(requests, k + more)


def test_the_part_of_the_gap_that_a_policy_closes() -> None:
    found = Replay(4, {"lru": 0.2, "lfu": 0.3}, 0.6)
    assert found.recovered("lru") == 0
    assert found.recovered("lfu") == pytest.approx(0.25)
    assert Replay(4, {"lru": 0.6}, 0.6).recovered("lru") is None


def test_fewer_slots_than_a_layer_needs_are_refused() -> None:
    ids = routing(0, 3, 2, 4, 2)
    with pytest.raises(ValueError, match="slots: expected at least 2"):
        hits(LRU([4] * 2, [2] * 2), ids, 4, 1)
    with pytest.raises(ValueError, match="slots: expected at least 2"):
        optimal_hits(ids, 4, 1)
