from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.router.planner import group_by_expert, plan_reads


@given(tokens=st.integers(1, 60), k=st.integers(1, 4), seed=st.integers(0, 1000))
def test_every_pair_is_in_exactly_one_group_and_its_expert_s(tokens: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(8)[:k] for _ in range(tokens)]).astype(np.int32)
    work = group_by_expert(ids)
    assert len({entry.expert for entry in work}) == len(work)
    assert sorted(np.concatenate([entry.pairs for entry in work]).tolist()) == list(range(tokens * k))
    for entry in work:
        assert (ids.ravel()[entry.pairs] == entry.expert).all()
        assert (np.diff(entry.pairs) > 0).all()


def test_residents_come_first_then_misses_with_most_tokens() -> None:
    ids = np.array([[1, 2], [3, 2], [2, 4], [4, 5]], np.int32)
    order = [entry.expert for entry in plan_reads(group_by_expert(ids), {5, 1}.__contains__)]
    assert order == [1, 5, 2, 4, 3]


def test_a_decode_step_keeps_the_router_s_order() -> None:
    ids = np.array([[6, 0, 3, 1]], np.int32)
    order = [entry.expert for entry in plan_reads(group_by_expert(ids), {3}.__contains__)]
    assert order == [3, 6, 0, 1]
