from __future__ import annotations

import numpy as np
import numpy.typing as npt
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import F32, bits, normal, seeds

from smallthinker import _kernels

U16 = npt.NDArray[np.uint16]


def filled_cache(k: F32, v: F32, capacity: int) -> tuple[U16, U16]:
    """Rings [K, capacity, D] after all of k, v [S, K, D]; slots never written hold NaN."""
    shape = (k.shape[1], capacity, k.shape[2])
    k_cache, v_cache = np.full(shape, 0x7E00, np.uint16), np.full(shape, 0x7E00, np.uint16)
    _kernels.kv_append(k, v, k_cache, v_cache, 0)
    return k_cache, v_cache


def attend(pool: _kernels.ThreadPool, q: F32, cache: tuple[U16, U16], start: int, window: int = 0) -> F32:
    out = np.empty_like(q)
    _kernels.attention(pool, q, *cache, start, window, out)
    return out


cases = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 20),
        "start": st.integers(0, 200),
        "kv_heads": st.integers(1, 3),
        "group": st.integers(1, 7),
        "dim": st.integers(1, 40).map(lambda n: 2 * n) | st.just(128) | st.just(160),
        "window": st.just(0) | st.integers(1, 250),
        "spare": st.integers(0, 70),
    }
)


def make(case: dict[str, int], seed: int) -> tuple[F32, F32, F32, tuple[U16, U16]]:
    tokens, start, window = case["tokens"], case["start"], case["window"]
    seen = start + tokens
    k, v = normal(seed, 2, seen, case["kv_heads"], case["dim"])
    q = normal(seed + 1, tokens, case["kv_heads"] * case["group"], case["dim"])
    capacity = (min(seen, window + tokens - 1) if window else seen) + case["spare"]
    return q, k, v, filled_cache(k, v, capacity)


@given(case=cases, seed=seeds)
def test_attention_matches_the_reference_over_a_ring_that_is_just_large_enough(
    pool: _kernels.ThreadPool, case: dict[str, int], seed: int
) -> None:
    q, k, v, cache = make(case, seed)
    out = attend(pool, q, cache, case["start"], case["window"])
    expected = numpy_reference.attention(q, k, v, case["start"], case["window"])
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@given(case=cases, seed=seeds, data=st.data())
def test_prefill_in_any_chunking_on_any_number_of_threads_equals_decode_bit_for_bit(
    pools: list[_kernels.ThreadPool], case: dict[str, int], seed: int, data: st.DataObject
) -> None:
    q, _, _, cache = make(case, seed)
    start, window, tokens = case["start"], case["window"], case["tokens"]
    decode = np.vstack([attend(pools[0], q[t : t + 1], cache, start + t, window) for t in range(tokens)])
    cut = data.draw(st.integers(0, tokens))
    chunks = [attend(pools[1], q[:cut], cache, start, window), attend(pools[1], q[cut:], cache, start + cut, window)]
    for prefill in (*(attend(pool, q, cache, start, window) for pool in pools), np.vstack(chunks)):
        np.testing.assert_array_equal(bits(prefill), bits(decode))


def test_the_size_of_the_ring_changes_no_bit(pool: _kernels.ThreadPool) -> None:
    k, v = normal(0, 2, 300, 2, 32)
    q = normal(1, 1, 4, 32)
    outs = [attend(pool, q, filled_cache(k, v, capacity), 299, 70) for capacity in (70, 71, 128, 301)]
    for out in outs[1:]:
        np.testing.assert_array_equal(bits(out), bits(outs[0]))


def test_a_nan_outside_the_window_is_not_seen(pool: _kernels.ThreadPool) -> None:
    k, v = normal(0, 2, 100, 1, 16)
    k[60], v[61] = np.nan, np.inf
    q = normal(1, 10, 2, 16)
    out = attend(pool, q, filled_cache(k, v, 100), 90, 29)  # the first query sees 62..90
    assert np.isfinite(out).all()
    out = attend(pool, q, filled_cache(k, v, 100), 90, 30)
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1:]).all()


def test_a_later_token_that_is_not_finite_does_not_reach_an_earlier_one(pool: _kernels.ThreadPool) -> None:
    k, v = normal(0, 2, 8, 1, 16)
    q = normal(1, 8, 2, 16)
    clean = attend(pool, q, filled_cache(k, v, 8), 0)
    k[5], v[5], q[5] = np.nan, np.nan, np.nan
    out = attend(pool, q, filled_cache(k, v, 8), 0)
    np.testing.assert_array_equal(bits(out[:5]), bits(clean[:5]))
    assert np.isnan(out[5:]).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
def test_one_key_gives_its_value_at_any_score(pool: _kernels.ThreadPool, scale: float) -> None:
    k, v = normal(0, 2, 1, 1, 16)
    out = attend(pool, normal(1, 1, 3, 16) * np.float32(scale), filled_cache(k, v, 1), 0)
    np.testing.assert_array_equal(out, np.tile(v.astype(np.float16).astype(np.float32), (1, 3, 1)))


def test_scores_far_apart_leave_the_largest_alone(pool: _kernels.ThreadPool) -> None:
    k, v = np.zeros((130, 1, 16), np.float32), normal(0, 130, 1, 16)
    k[70] = 100
    out = attend(pool, np.full((1, 1, 16), 100, np.float32), filled_cache(k, v, 130), 129)
    np.testing.assert_array_equal(out[0, 0], v[70, 0].astype(np.float16).astype(np.float32))


@given(seed=seeds, tokens=st.integers(0, 12), capacity=st.integers(12, 30), start=st.integers(0, 100))
def test_appended_positions_go_to_their_slots_rounded_to_f16(seed: int, tokens: int, capacity: int, start: int) -> None:
    k, v = normal(seed, 2, tokens, 2, 6) * np.float32(1e-5)  # many are subnormal in f16
    caches = np.zeros((2, 2, capacity, 6), np.uint16)
    _kernels.kv_append(k, v, caches[0], caches[1], start)
    expected = np.zeros_like(caches)
    for t in range(tokens):
        for cache, source in zip(expected, (k, v), strict=True):
            cache[:, (start + t) % capacity] = source[t].astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(caches, expected)
