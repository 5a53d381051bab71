from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.benchmark.bound import best_hit_rate, decode_ids, decode_use
from smallthinker.cache.policies import POLICIES
from smallthinker.cache.replay import hits
from smallthinker.router.trace import Trace


def random_trace(seed: int, lengths: list[int], layers: int, experts: int, k: int) -> Trace:
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    skew = rng.normal(0, 1, (layers, experts))
    order = np.argsort(-(skew + rng.gumbel(size=(tokens, layers, experts))), axis=2)
    probs = rng.random((tokens, layers, experts)).astype(np.float16)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    return Trace(order[:, :, :k].astype(np.uint8), probs, starts, 100, "random")


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=st.integers(0, 1000), prompt=st.integers(1, 8), tokens=st.integers(1, 8), layers=st.integers(1, 3),
    slots=st.integers(2, 24),
)  # fmt: skip
def test_no_policy_hits_more_than_the_bound(
    policy: str, seed: int, prompt: int, tokens: int, layers: int, slots: int
) -> None:
    """Of either answer: what the whole of it hits, less what its tokens before the decoded ones do."""
    trace = random_trace(seed, [prompt + tokens] * 2, layers, 8, 2)
    for answer, first in ((0, prompt), (1, 2 * prompt + tokens)):
        make = POLICIES[policy]
        everything, before = (
            hits(make([8] * layers, [2] * layers), trace.ids[:end], 8, slots) for end in (first + tokens, first)
        )
        found = (everything - before) / decode_ids(trace, answer, prompt).size
        assert found <= best_hit_rate(trace, answer, prompt, slots) + 1e-9


def test_with_room_for_all_only_first_uses_miss() -> None:
    ids = np.array([[[0, 1]], [[1, 2]], [[2, 3]]], np.uint8)
    trace = Trace(ids, np.zeros((3, 1, 4), np.float16), np.array([0]), 100, "")
    assert best_hit_rate(trace, 0, 1, 4) == 0.5  # of 1, 2, 2, 3 the first 2 and 3 were never read before
    assert best_hit_rate(trace, 0, 2, 4) == 0.5


def test_the_use_of_experts_is_of_decoded_tokens_alone() -> None:
    ids = np.array([[[0]], [[1]], [[2]], [[1]]], np.uint8)
    trace = Trace(ids, np.zeros((4, 1, 4), np.float16), np.array([0, 2]), 100, "")
    assert decode_use(trace, 1).tolist() == [[0.0, 1.0, 0.0, 0.0]]
