from __future__ import annotations

import math

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from random_inputs import F32, at_most, bits

from smallthinker import _kernels

few_values = st.sampled_from([np.float32(v) for v in (-np.inf, -90, -2.5, -1, -0.0, 0, 0.5, 0.5, 3, 1e30)])  # many ties
any_value = st.floats(width=32, allow_nan=False)
logits_arrays = hnp.arrays(np.float32, st.integers(1, 70), elements=few_values | any_value)
chances = st.floats(0, 1, exclude_max=True)
temperatures = st.sampled_from([5e-324, 1e-320, 1e-38, 0.01, 0.7, 1.0, 2.0, 1e4, 1e300, 1.7e308]) | st.floats(0.01, 100)


@given(
    logits=logits_arrays,
    temperature=temperatures,
    top_k=st.integers(1, 80),
    top_p=st.just(1.0) | st.floats(0, 1, exclude_min=True),
    min_p=st.just(0.0) | st.floats(0, 1, exclude_max=True),
    u=chances,
)
def test_a_draw_is_that_of_the_plain_definition(
    pools: list[_kernels.ThreadPool], logits: F32, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> None:
    expected = numpy_reference.sample(logits, temperature, top_k, top_p, min_p, u)
    for pool in pools:
        assert _kernels.sample(pool, logits, temperature, top_k, top_p, min_p, u) == expected


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 0.01, 3.0, 20.0]), u=chances, data=st.data())
@at_most(15)
def test_a_vocabulary_of_published_size_is_drawn_from_in_the_same_way(
    pools: list[_kernels.ThreadPool], seed: int, spread: float, u: float, data: st.DataObject
) -> None:
    """Several pieces of it, for several threads; half of the logits are ties."""
    logits = (np.random.default_rng(seed).standard_normal(40_000) * spread).astype(np.float32).round(1)
    options = [
        data.draw(st.sampled_from(few)) for few in ((0.5, 1.0, 30.0), (40, 20_000, 40_000), (0.9, 1.0), (0.0, 0.05))
    ]
    temperature, top_k, top_p, min_p = options
    expected = numpy_reference.sample(logits, temperature, int(top_k), top_p, min_p, u)
    assert {_kernels.sample(pool, logits, temperature, int(top_k), top_p, min_p, u) for pool in pools} == {expected}


@given(logits=hnp.arrays(np.float32, 50, elements=st.floats(-20, 20, width=32)), temperature=st.floats(0.1, 10))
def test_the_weights_are_a_softmax(logits: F32, temperature: float) -> None:
    exact = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    weights = np.array([float(w) for w in numpy_reference.sampling_weights(logits, temperature)])
    np.testing.assert_allclose(weights / 2**42, exact, rtol=1e-9, atol=2.0**-43)


def test_ties_go_to_the_lower_id(pool: _kernels.ThreadPool) -> None:
    logits = np.array([1, 2, 0.0, 2, -0.0, 2], np.float32)
    assert {_kernels.sample(pool, logits, 1.0, 2, 1.0, 0.0, u) for u in np.arange(0, 1, 0.01)} == {1, 3}
    assert _kernels.sample(pool, logits, 1.0, 5, 1.0, 0.0, math.nextafter(1, 0)) == 2


def test_infinite_logits_share_all_there_is(pool: _kernels.ThreadPool) -> None:
    logits = np.array([1, np.inf, -np.inf, np.inf, 3], np.float32)
    drawn = [_kernels.sample(pool, logits, 1.0, 5, 1.0, 0.0, u) for u in (0.0, 0.49, 0.5, 0.99)]
    assert drawn == [1, 1, 3, 3]


@pytest.mark.parametrize("logits", [[np.nan], [1, np.nan], [-np.inf, -np.inf], [1] * 20 + [np.nan] + [2] * 20])
def test_nothing_is_drawn_from_a_nan_or_from_nothing(pool: _kernels.ThreadPool, logits: list[float]) -> None:
    assert _kernels.sample(pool, np.array(logits, np.float32), 1.0, 1, 1.0, 0.0, 0.5) == -1


@given(logits=hnp.arrays(np.float32, st.integers(1, 70), elements=few_values | st.floats(width=32)), data=st.data())
def test_the_top_ids_are_those_of_a_whole_sort(pool: _kernels.ThreadPool, logits: F32, data: st.DataObject) -> None:
    ids = np.empty(data.draw(st.integers(0, len(logits)), label="k"), np.int32)
    _kernels.top_ids(pool, logits, ids)
    np.testing.assert_array_equal(ids, numpy_reference.order_of_logits(logits)[: len(ids)])


@given(
    logits=hnp.arrays(np.float32, 30, elements=few_values | any_value),
    recent=st.lists(st.integers(0, 29), max_size=40),
    penalty=st.sampled_from([0.0, 1e-38, 1e-20, 0.5, 1.1, 1e38, np.inf]),
)
def test_a_penalty_counts_once_and_bans_and_forces_nothing(logits: F32, recent: list[int], penalty: float) -> None:
    expected, found = logits.copy(), logits.copy()
    most = np.finfo(np.float32).max
    with np.errstate(all="ignore"):
        for id in set(recent):
            if np.isfinite(logits[id]) and logits[id] != 0:
                x, by = logits[id], np.float32(penalty)
                expected[id] = np.clip(x / by if x > 0 else x * by, -most, most)
    _kernels.penalize(found, np.array(recent, np.int32), penalty)
    np.testing.assert_array_equal(bits(found), bits(expected))
