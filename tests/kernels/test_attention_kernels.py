from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import numpy_reference
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from random_inputs import F32, bits, normal, seeds

from smallthinker import _kernels

U8 = npt.NDArray[np.uint8]
GROUP = _kernels.KV_GROUP
KV_QUANTS: list[_kernels.KvQuant] = ["f16", "q8_0"]


class Cache(NamedTuple):
    quant: _kernels.KvQuant
    keys: U8
    values: U8


def empty_cache(quant: _kernels.KvQuant, kv_heads: int, positions: int, dim: int) -> Cache:
    """A ring of at least so many positions, all of them NaN in both formats."""
    shape = (kv_heads, -(-positions // GROUP), _kernels.packed_bytes(quant, "tiles", GROUP, dim))
    return Cache(quant, np.full(shape, 0xFF, np.uint8), np.full(shape, 0xFF, np.uint8))


def append(pool: _kernels.ThreadPool, cache: Cache, k: F32, v: F32, start: int) -> None:
    _kernels.kv_append(pool, cache.quant, k, v, cache.keys, cache.values, start)


def filled_cache(pool: _kernels.ThreadPool, k: F32, v: F32, capacity: int, quant: _kernels.KvQuant = "f16") -> Cache:
    """After all of k, v [S, K, D]; slots never written hold NaN."""
    cache = empty_cache(quant, k.shape[1], capacity, k.shape[2])
    append(pool, cache, k, v, 0)
    return cache


def attend(
    pool: _kernels.ThreadPool, q: F32, cache: Cache, start: int, window: int = 0, more: Mapping[str, Any] | None = None
) -> F32:
    """more: scale, softcap, sinks and chunk."""
    out, more = np.empty_like(q), more or {}
    scores = more.get("scale", q.shape[-1] ** -0.5), more.get("softcap", 0.0), more.get("sinks"), more.get("chunk", 0)
    scores = scores if more else scores[:1]  # a driver knows no None
    _kernels.attention(pool, cache.quant, q, cache.keys, cache.values, start, window, out, *scores)
    return out


dims = {
    "f16": st.integers(1, 40).map(lambda n: 2 * n) | st.just(128) | st.just(160),
    "q8_0": st.sampled_from([32, 64, 96, 128, 160]),
}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    quant = draw(st.sampled_from(KV_QUANTS))
    return {
        "quant": quant,
        "tokens": draw(st.integers(1, 40)),
        "start": draw(st.integers(0, 200) | st.integers(400, 1200)),  # on both sides of the first splits
        "kv_heads": draw(st.integers(1, 3)),
        "group": draw(st.integers(1, 9)),
        "dim": draw(dims[quant]),
        "window": draw(st.just(0) | st.integers(1, 250) | st.integers(500, 900)),
        "spare": draw(st.integers(0, 70)),
    }


def make(pool: _kernels.ThreadPool, case: dict[str, Any], seed: int) -> tuple[F32, F32, F32, Cache]:
    tokens, start, window = case["tokens"], case["start"], case["window"]
    seen = start + tokens
    k, v = normal(seed, 2, seen, case["kv_heads"], case["dim"])
    q = normal(seed + 1, tokens, case["kv_heads"] * case["group"], case["dim"])
    capacity = (min(seen, window + tokens - 1) if window else seen) + case["spare"]
    return q, k, v, filled_cache(pool, k, v, capacity, case["quant"])


# 18 dimensions are a whole vector and a bit: the last row's second vector would end behind the cache
@example(
    case={"quant": "f16", "tokens": 1, "start": 15, "kv_heads": 1, "group": 1, "dim": 18, "window": 0, "spare": 0},
    seed=0,
)
@given(case=cases(), seed=seeds)
def test_attention_matches_the_reference_over_a_ring_that_is_just_large_enough(
    pool: _kernels.ThreadPool, case: dict[str, Any], seed: int
) -> None:
    q, k, v, cache = make(pool, case, seed)
    out = attend(pool, q, cache, case["start"], case["window"])
    expected = numpy_reference.attention(q, k, v, case["start"], case["window"], case["quant"])
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@st.composite
def other_scores(draw: st.DrawFn, heads: int) -> dict[str, Any]:
    return {
        "scale": draw(st.sampled_from([0.02, 0.3])),
        "softcap": draw(st.sampled_from([0.0, 2.0, 50.0])),
        "sinks": normal(draw(seeds), heads) * np.float32(3),
        "chunk": draw(st.sampled_from([0, 1, 30, 300])),
    }


@given(case=cases(), seed=seeds, data=st.data())
def test_scaled_and_capped_scores_sinks_and_chunks_match_the_reference_and_are_the_same_bits_in_any_chunking(
    pools: list[_kernels.ThreadPool], case: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    q, k, v, cache = make(pools[0], case, seed)
    more = data.draw(other_scores(q.shape[1]))
    start, window, tokens = case["start"], case["window"], case["tokens"]
    out = attend(pools[1], q, cache, start, window, more)
    expected = numpy_reference.attention(q, k, v, start, window, case["quant"], **more)
    np.testing.assert_allclose(out, expected, rtol=0, atol=4e-5)
    decode = np.vstack([attend(pools[t % 3], q[t : t + 1], cache, start + t, window, more) for t in range(tokens)])
    np.testing.assert_array_equal(bits(out), bits(decode))


@given(case=cases(), seed=seeds, data=st.data())
def test_prefill_in_any_chunking_on_any_number_of_threads_equals_decode_bit_for_bit(
    pools: list[_kernels.ThreadPool], case: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    q, _, _, cache = make(pools[0], case, seed)
    start, window, tokens = case["start"], case["window"], case["tokens"]
    decode = np.vstack([attend(pools[t % 3], q[t : t + 1], cache, start + t, window) for t in range(tokens)])
    cut = data.draw(st.integers(0, tokens))
    chunks = [attend(pools[1], q[:cut], cache, start, window), attend(pools[1], q[cut:], cache, start + cut, window)]
    for prefill in (*(attend(pool, q, cache, start, window) for pool in pools), np.vstack(chunks)):
        np.testing.assert_array_equal(bits(prefill), bits(decode))


@given(case=cases(), seed=seeds, data=st.data())
def test_a_cache_filled_in_any_chunks_is_the_same_bytes(
    pool: _kernels.ThreadPool, case: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    _, k, v, whole = make(pool, case, seed)
    pieces = empty_cache(case["quant"], k.shape[1], whole.keys.shape[1] * GROUP, k.shape[2])
    at = 0
    while at < len(k):
        count = data.draw(st.integers(1, len(k) - at))
        append(pool, pieces, k[at : at + count], v[at : at + count], at)
        at += count
    np.testing.assert_array_equal(pieces.keys, whole.keys)
    np.testing.assert_array_equal(pieces.values, whole.values)


@pytest.mark.skipif(sys.platform != "linux", reason="memory that can't be read is asked for as Linux has it")
@pytest.mark.skipif("KERNELS_DRIVER" in os.environ, reason="a driver is sent all of the cache")
@pytest.mark.parametrize("quant", KV_QUANTS)
def test_groups_outside_the_window_are_not_touched(pool: _kernels.ThreadPool, quant: _kernels.KvQuant) -> None:
    """All but the groups that hold a visible position lie on pages that can't be read: touching one is the end."""
    page, group_bytes = mmap.PAGESIZE, _kernels.packed_bytes(quant, "tiles", GROUP, 128)
    capacity, start, window = 2048, 1900, 600
    k, v = normal(0, 2, 1904, 1, 128)
    reference = filled_cache(pool, k, v, capacity, quant)
    first, last = (start - window + 1) // GROUP * group_bytes, (start // GROUP + 1) * group_bytes
    libc = ctypes.CDLL(None, use_errno=True)
    guarded = []
    for source in (reference.keys, reference.values):
        memory = mmap.mmap(-1, source.nbytes)
        array = np.frombuffer(memory, np.uint8).reshape(source.shape)
        array[:] = source
        for begin, end in ((0, first // page * page), (-(-last // page) * page, source.nbytes // page * page)):
            address = ctypes.c_void_p(array.ctypes.data + begin)
            assert libc.mprotect(address, ctypes.c_size_t(end - begin), 0) == 0, ctypes.get_errno()
        guarded.append(array)
    q = normal(1, 4, 6, 128)[:1]
    out = attend(pool, q, Cache(quant, *guarded), start, window)
    np.testing.assert_array_equal(bits(out), bits(attend(pool, q, reference, start, window)))


@pytest.mark.parametrize("quant", KV_QUANTS)
def test_the_size_of_the_ring_changes_no_bit(pool: _kernels.ThreadPool, quant: _kernels.KvQuant) -> None:
    k, v = normal(0, 2, 700, 2, 32)
    q = normal(1, 1, 4, 32)
    outs = [attend(pool, q, filled_cache(pool, k, v, size, quant), 699, 200) for size in (200, 220, 512, 701)]
    for out in outs[1:]:
        np.testing.assert_array_equal(bits(out), bits(outs[0]))


@pytest.mark.parametrize("quant", KV_QUANTS)
def test_a_nan_outside_the_window_is_not_seen(pool: _kernels.ThreadPool, quant: _kernels.KvQuant) -> None:
    k, v = normal(0, 2, 100, 1, 32)
    k[60], v[61] = np.nan, np.inf
    q = normal(1, 10, 2, 32)
    out = attend(pool, q, filled_cache(pool, k, v, 100, quant), 90, 29)  # the first query sees 62..90
    assert np.isfinite(out).all()
    out = attend(pool, q, filled_cache(pool, k, v, 100, quant), 90, 30)
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1:]).all()


@pytest.mark.parametrize("quant", KV_QUANTS)
def test_a_later_token_that_is_not_finite_does_not_reach_an_earlier_one(
    pool: _kernels.ThreadPool, quant: _kernels.KvQuant
) -> None:
    k, v = normal(0, 2, 8, 1, 32)
    q = normal(1, 8, 2, 32)
    clean = attend(pool, q, filled_cache(pool, k, v, 8, quant), 0)
    k[5], v[5], q[5] = np.nan, np.nan, np.nan
    out = attend(pool, q, filled_cache(pool, k, v, 8, quant), 0)
    np.testing.assert_array_equal(bits(out[:5]), bits(clean[:5]))
    assert np.isnan(out[5:]).all()


@given(case=cases(), seed=seeds, q_exponent=st.integers(-38, 12), k_exponent=st.integers(-9, 3))
def test_scores_of_every_size_give_a_mean_of_the_values_that_are_seen(
    pool: _kernels.ThreadPool, case: dict[str, Any], seed: int, q_exponent: int, k_exponent: int
) -> None:
    q, k, v, _ = make(pool, case, seed)
    q, k = q * np.float32(10.0**q_exponent), k * np.float32(10.0**k_exponent)
    out = attend(pool, q, filled_cache(pool, k, v, len(k), case["quant"]), case["start"], case["window"])
    kept = numpy_reference.kept_by_cache(case["quant"], v)
    for t in range(len(q)):
        last = case["start"] + t
        first = max(0, last - case["window"] + 1) if case["window"] else 0
        seen = kept[first : last + 1].repeat(case["group"], 1)
        assert (out[t] <= seen.max(0) + 1e-5).all()
        assert (out[t] >= seen.min(0) - 1e-5).all()


@pytest.mark.parametrize("quant", KV_QUANTS)
@pytest.mark.parametrize("exponent", [-7, -4, 4])
def test_values_from_the_smallest_f16_to_the_largest_match_the_reference(
    pool: _kernels.ThreadPool, quant: _kernels.KvQuant, exponent: int
) -> None:
    size = np.float32(10.0**exponent)  # at -7 every value, or its scale, is denormal in f16
    q, k, v = normal(0, 9, 6, 64), normal(1, 150, 2, 64), normal(2, 150, 2, 64) * size
    out = attend(pool, q, filled_cache(pool, k, v, 150, quant), 141)
    np.testing.assert_allclose(out, numpy_reference.attention(q, k, v, 141, 0, quant), rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("quant", KV_QUANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_infinity_or_a_nan_in_a_query_a_key_or_a_value_travels_and_leaves_other_heads_alone(
    pool: _kernels.ThreadPool, quant: _kernels.KvQuant, bad: float
) -> None:
    k, v = normal(0, 2, 100, 2, 32)
    q = normal(1, 3, 4, 32)
    clean = attend(pool, q, filled_cache(pool, k, v, 100, quant), 97)
    for array, at in ((k, (90, 0, 5)), (v, (90, 0, 5)), (q, (1, 0, 5))):
        kept, array[at] = array[at], bad
        out = attend(pool, q, filled_cache(pool, k, v, 100, quant), 97)
        array[at] = kept
        np.testing.assert_array_equal(bits(out[:, 2:]), bits(clean[:, 2:]))  # of the other keys and values
        if array is v:
            assert not np.isfinite(out[:, :2, 5]).any()
        elif quant == "q8_0" or np.isnan(bad):  # an infinite score may also mean a weight of zero
            assert np.isnan(out[1, 0]).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
def test_one_key_gives_its_value_at_any_score(pool: _kernels.ThreadPool, scale: float) -> None:
    k, v = normal(0, 2, 1, 1, 32)
    q = normal(1, 1, 3, 32) * np.float32(scale)
    for quant in KV_QUANTS:
        out = attend(pool, q, filled_cache(pool, k, v, 1, quant), 0)
        np.testing.assert_array_equal(out, np.tile(numpy_reference.kept_by_cache(quant, v), (1, 3, 1)))


def test_scores_far_apart_leave_the_largest_alone(pool: _kernels.ThreadPool) -> None:
    k, v = np.zeros((1130, 1, 32), np.float32), normal(0, 1130, 1, 32)
    k[70] = 100
    q = np.full((1, 1, 32), 100, np.float32)
    for quant in KV_QUANTS:
        out = attend(pool, q, filled_cache(pool, k, v, 1130, quant), 1129)
        np.testing.assert_array_equal(out[0, 0], numpy_reference.kept_by_cache(quant, v)[70, 0])


@given(seed=seeds, tokens=st.integers(0, 12), groups=st.integers(1, 3), start=st.integers(0, 100))
def test_appended_positions_go_to_their_slots_rounded_to_f16(
    pool: _kernels.ThreadPool, seed: int, tokens: int, groups: int, start: int
) -> None:
    k, v = normal(seed, 2, tokens, 2, 6) * np.float32(1e-5)  # many are subnormal in f16
    cache = Cache("f16", *np.zeros((2, 2, groups, GROUP * 6 * 2), np.uint8))
    append(pool, cache, k, v, start)
    keys, values = np.zeros((2, groups, 6, GROUP), np.float16), np.zeros((2, groups, GROUP, 6), np.float16)
    for t in range(tokens):
        group, lane = divmod((start + t) % (groups * GROUP), GROUP)
        keys[:, group, :, lane] = k[t]
        values[:, group, lane] = v[t]
    np.testing.assert_array_equal(cache.keys.ravel(), keys.view(np.uint8).ravel())
    np.testing.assert_array_equal(cache.values.ravel(), values.view(np.uint8).ravel())


@given(seed=seeds, tokens=st.integers(0, 12), groups=st.integers(1, 3), start=st.integers(0, 100))
def test_appended_positions_go_to_their_slots_rounded_to_q8_0(
    pool: _kernels.ThreadPool, seed: int, tokens: int, groups: int, start: int
) -> None:
    k, v = normal(seed, 2, tokens, 2, 64)
    k[: tokens // 3] *= np.float32(1e-20)  # scales below f16
    cache = Cache("q8_0", *np.zeros((2, 2, groups, GROUP * 68), np.uint8))
    append(pool, cache, k, v, start)
    keys, values = np.zeros((2, groups, 2, 544), np.uint8), np.zeros((2, groups, 64 + GROUP * 64), np.uint8)
    for t in range(tokens):
        group, lane = divmod((start + t) % (groups * GROUP), GROUP)
        for block in range(2):
            for x, to_keys in ((k[t], True), (v[t], False)):
                scale, n = numpy_reference.blocks_kv(x[:, 32 * block : 32 * block + 32])
                scale_bytes = scale.view(np.uint8)
                if to_keys:
                    keys[:, group, block, 2 * lane : 2 * lane + 2] = scale_bytes
                    tiles = keys[:, group, block, 32:].reshape(2, 8, GROUP, 4)  # 4 columns of 16 positions at a time
                    tiles[:, :, lane] = (n.reshape(2, 8, 4).astype(np.int16) + 128).astype(np.uint8)
                else:
                    at = 2 * (block * GROUP + lane)
                    values[:, group, at : at + 2] = scale_bytes
                    at = 64 + 64 * lane + 32 * block
                    values[:, group, at : at + 32] = n.reshape(2, 32).view(np.uint8)
    np.testing.assert_array_equal(cache.keys.ravel(), keys.ravel())
    np.testing.assert_array_equal(cache.values.ravel(), values.ravel())


def test_q8_is_as_near_to_f16_as_its_rounding_is_fine(pool: _kernels.ThreadPool) -> None:
    """Eight bits of keys, values and queries: a thousandth of a value's size, not a hundredth."""
    k, v = normal(0, 2, 600, 2, 128)
    q = normal(1, 4, 6, 128)
    exact, rounded = (attend(pool, q, filled_cache(pool, k, v, 600, quant), 596) for quant in KV_QUANTS)
    error = np.sqrt(np.mean((exact - rounded) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 2e-2
