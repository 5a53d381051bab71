from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy_reference import NOTHING
from random_inputs import F32

from smallthinker import _kernels

Gating = Literal["softmax", "sigmoid"]
both = pytest.mark.parametrize("gating", ["softmax", "sigmoid"])


def route(logits: F32, k: int, gating: Gating) -> tuple[np.ndarray, F32]:
    ids, weights = np.empty((len(logits), k), np.int32), np.empty((len(logits), k), np.float32)
    _kernels.route(logits, k, gating, ids, weights, False, True, NOTHING, False, 1, 1, 1.0, NOTHING)
    return ids, weights


shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
few_values = st.sampled_from([np.float32(v) for v in (-2.5, -1, -0.0, 0, 0.5, 0.5, 3, 20)])  # many ties


@both
@given(logits=hnp.arrays(np.float32, shapes, elements=few_values), data=st.data())
def test_the_largest_come_first_and_ties_go_to_the_lower_index(
    gating: Gating, logits: F32, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, logits.shape[1]))
    ids, weights = route(logits, k, gating)
    expected_ids, expected_weights = numpy_reference.route(logits, k, gating)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@both
@given(logits=hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), data=st.data())
def test_any_logits_give_distinct_valid_ids(gating: Gating, logits: F32, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, logits.shape[1]))
    ids, _ = route(logits, k, gating)
    assert ((ids >= 0) & (ids < logits.shape[1])).all()
    assert all(len(set(row)) == k for row in ids)
    chosen = np.take_along_axis(logits, ids, 1)
    assert (np.isnan(chosen).sum(1) == np.maximum(0, k - (~np.isnan(logits)).sum(1))).all()


@both
def test_a_chosen_nan_makes_its_token_nan_and_no_other(gating: Gating) -> None:
    logits = np.array([[np.nan, np.nan, 1.0], [0.0, 1.0, 2.0]], np.float32)
    ids, weights = route(logits, 2, gating)
    np.testing.assert_array_equal(ids, [[2, 0], [2, 1]])
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all()


@st.composite
def scorings(draw: st.DrawFn, experts: int) -> dict[str, Any]:
    """How a router may choose, and k."""
    groups = draw(st.sampled_from([n for n in (1, 2, 3, 4) if experts % n == 0 and (n == 1 or experts // n > 1)]))
    kept = draw(st.integers(1, groups))
    each = hnp.arrays(np.float32, experts, elements=st.sampled_from([np.float32(v) for v in (-1, 0, 0.25, 0.5, 2)]))
    return {
        "over_all": draw(st.booleans()),
        "normalise": draw(st.booleans()),
        "bias": draw(each | st.just(NOTHING)),
        "bias_chooses": draw(st.booleans()),
        "groups": groups,
        "kept_groups": kept,
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "expert_scale": draw(each | st.just(NOTHING)),
        "k": draw(st.integers(1, kept * experts // groups)),
    }


@both
@given(logits=hnp.arrays(np.float32, shapes, elements=few_values), data=st.data())
def test_any_scoring_is_that_of_the_reference_with_ties_to_the_lower_index(
    gating: Gating, logits: F32, data: st.DataObject
) -> None:
    how = data.draw(scorings(logits.shape[1]))
    k = how.pop("k")
    ids, weights = np.empty((len(logits), k), np.int32), np.empty((len(logits), k), np.float32)
    _kernels.route(logits, k, gating, ids, weights, *how.values())
    expected_ids, expected_weights = numpy_reference.route(logits, k, gating, **how)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-6)


@both
def test_a_token_of_a_call_is_routed_as_alone(gating: Gating) -> None:
    rng = np.random.default_rng(0)
    logits, each = rng.standard_normal((5, 12), np.float32), rng.standard_normal((2, 12), np.float32)
    how: tuple[Any, ...] = (True, False, each[0], True, 4, 2, 1.5, each[1])
    ids, weights = np.empty((5, 3), np.int32), np.empty((5, 3), np.float32)
    _kernels.route(logits, 3, gating, ids, weights, *how)
    for t in range(5):
        alone, of_it = np.empty((1, 3), np.int32), np.empty((1, 3), np.float32)
        _kernels.route(logits[t : t + 1].copy(), 3, gating, alone, of_it, *how)
        assert alone[0].tolist() == ids[t].tolist() and of_it.tobytes() == weights[t].tobytes()
