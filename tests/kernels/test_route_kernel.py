from __future__ import annotations

from typing import Literal

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from random_inputs import F32

from smallthinker import _kernels

Gating = Literal["softmax", "sigmoid"]
both = pytest.mark.parametrize("gating", ["softmax", "sigmoid"])


def route(logits: F32, k: int, gating: Gating) -> tuple[np.ndarray, F32]:
    ids, weights = np.empty((len(logits), k), np.int32), np.empty((len(logits), k), np.float32)
    _kernels.route(logits, k, gating, ids, weights)
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
