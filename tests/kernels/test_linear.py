from __future__ import annotations

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import (
    HALVES,
    Make,
    assert_near,
    bits,
    linear,
    matrix,
    meaning,
    normal,
    random_blocks,
    seeds,
    tokens,
    uneven,
    widths,
)

from smallthinker import _kernels


@given(
    data=st.data(),
    seed=seeds,
    rows=st.integers(1, 90),
    n_tokens=tokens,
    exponent=st.integers(-20, 20),
    weight_exponent=st.integers(-9, 3),  # from where f16 scales are denormal or zero to its largest
)
def test_products_match_the_reference(
    pool: _kernels.ThreadPool,
    quant: _kernels.Quant,
    data: st.DataObject,
    seed: int,
    rows: int,
    n_tokens: int,
    exponent: int,
    weight_exponent: int,
) -> None:
    w = normal(seed, rows, data.draw(widths(quant))) * np.float32(10.0**weight_exponent)
    x = normal(seed + 1, n_tokens, w.shape[1]) * np.float32(10.0**exponent)
    out = linear(pool, quant, _kernels.pack(quant, "tiles", w), rows, x)
    kept = numpy_reference.unpack(quant, w)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(kept).T + np.abs(x).max()
    assert_near(out, numpy_reference.linear(quant, kept, x), magnitude)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40), n_tokens=tokens)
def test_products_of_inputs_of_every_size_match_the_reference(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, data: st.DataObject, seed: int, rows: int, n_tokens: int
) -> None:
    w = uneven(seed, rows, data.draw(widths(quant)))
    w = np.clip(w, -3e4, 3e4)  # what f16 can hold
    x = uneven(seed + 1, n_tokens, w.shape[1])
    kept = numpy_reference.unpack(quant, w)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(kept).T.astype(np.float64)
    out = linear(pool, quant, _kernels.pack(quant, "tiles", w), rows, x)
    assert_near(out, numpy_reference.linear(quant, kept, x), magnitude + 1e-25)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40), n_tokens=tokens)
def test_blocks_of_any_numbers_are_the_matrix_that_they_mean(
    pool: _kernels.ThreadPool, any_quant: _kernels.Quant, data: st.DataObject, seed: int, rows: int, n_tokens: int
) -> None:
    packed, w = matrix(any_quant, seed, rows, data.draw(widths(any_quant)))
    x = uneven(seed + 1, n_tokens, w.shape[1])
    out = linear(pool, any_quant, packed, rows, x)
    # a weight with a min is a difference of numbers of its block's size
    size = np.repeat(np.abs(w.reshape(rows, -1, 32)).max(-1), 32, -1) if w.shape[1] % 32 == 0 else np.abs(w)
    magnitude = np.abs(x).astype(np.float64) @ size.T.astype(np.float64) + 1e-25
    assert_near(out, numpy_reference.linear(any_quant, w, x), 2 * magnitude)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40))
def test_rows_with_a_weight_that_is_not_finite_give_nothing_finite(
    pool: _kernels.ThreadPool, block_quant: _kernels.Quant, data: st.DataObject, seed: int, rows: int
) -> None:
    packed, w = matrix(block_quant, seed, rows, data.draw(widths(block_quant)))
    x = normal(seed + 1, 3, w.shape[1])
    clean = linear(pool, block_quant, packed, rows, x)
    _, nbytes = _kernels.formats()[block_quant]
    blocks = random_blocks(block_quant, seed, rows, w.shape[1], of_size=True).reshape(rows, -1, nbytes)
    bad = data.draw(st.integers(0, rows - 1))
    offset = data.draw(st.sampled_from([*HALVES[block_quant], 0][: len(HALVES[block_quant]) or 1]))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    last = blocks[bad, -1]
    if block_quant == "mxfp4":
        last[0] = 255
    else:
        last[offset : offset + 2] = np.array([value], "<f2").view(np.uint8)
    packed = _kernels.repack(block_quant, "tiles", blocks.reshape(rows, -1))
    assert not np.isfinite(_kernels.unpack(block_quant, "tiles", packed, rows, w.shape[1])[bad]).all()
    out = linear(pool, block_quant, packed, rows, x)
    assert not np.isfinite(out[:, bad]).any()
    np.testing.assert_array_equal(bits(np.delete(out, bad, 1)), bits(np.delete(clean, bad, 1)))


@pytest.mark.parametrize("level", [0x00, 0xFF, 0x77, 0x88])
def test_integers_at_both_ends_of_their_range_do_not_saturate(
    pool: _kernels.ThreadPool, block_quant: _kernels.Quant, level: int
) -> None:
    cols, nbytes = _kernels.formats()[block_quant]
    blocks = random_blocks(block_quant, 0, 16, cols, of_size=True)
    scales = [i for offset in HALVES[block_quant] for i in (offset, offset + 1)] if block_quant != "mxfp4" else [0]
    blocks[:, [i for i in range(nbytes) if i not in scales]] = level
    w = meaning(block_quant, blocks)
    for x in (np.ones((1, cols), np.float32), np.tile(np.array([[1.0, -1.0]], np.float32), (1, cols // 2))):
        out = linear(pool, block_quant, _kernels.repack(block_quant, "tiles", blocks), 16, x)
        assert_near(out, numpy_reference.linear(block_quant, w, x), np.abs(w).max() * cols * np.ones((1, 16)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_reaches_its_row_and_no_other(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, bad: float
) -> None:
    w, x = normal(0, 20, 96), normal(1, 11, 96)
    clean = linear(pool, quant, _kernels.pack(quant, "tiles", w), 20, x)
    w[7, 50] = bad
    out = linear(pool, quant, _kernels.pack(quant, "tiles", w), 20, x)
    assert not np.isfinite(out[:, 7]).any()
    np.testing.assert_array_equal(bits(np.delete(out, 7, 1)), bits(np.delete(clean, 7, 1)))


@pytest.mark.parametrize("block_quant", ["q8_0", "q4_0"])
def test_scales_that_overflow_f16_give_nothing_finite(pool: _kernels.ThreadPool, block_quant: _kernels.Quant) -> None:
    packed = _kernels.pack(block_quant, "tiles", normal(0, 20, 96) * np.float32(1e9))
    assert not np.isfinite(linear(pool, block_quant, packed, 20, normal(1, 5, 96))).any()


# Many tokens share an unpacked panel of 64 tokens, what is left over goes another way.
@given(
    data=st.data(),
    seed=seeds,
    rows=st.integers(1, 150),
    n_tokens=tokens | st.integers(60, 140),
    make=st.sampled_from([normal, uneven]),
)
def test_a_token_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(
    pools: list[_kernels.ThreadPool],
    any_quant: _kernels.Quant,
    data: st.DataObject,
    seed: int,
    rows: int,
    n_tokens: int,
    make: Make,
) -> None:
    packed, w = matrix(any_quant, seed, rows, data.draw(widths(any_quant)))
    x = make(seed + 1, n_tokens, w.shape[1])
    together = [linear(pool, any_quant, packed, rows, x) for pool in pools]
    alone = np.vstack([linear(pools[0], any_quant, packed, rows, x[t : t + 1]) for t in range(n_tokens)])
    cut = data.draw(st.integers(0, n_tokens))
    halves = np.vstack([linear(pools[1], any_quant, packed, rows, part) for part in (x[:cut], x[cut:])])
    for other in (*together, halves):
        np.testing.assert_array_equal(bits(other), bits(alone))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_gives_nothing_finite_and_leaves_the_others_alone(
    pool: _kernels.ThreadPool, any_quant: _kernels.Quant, bad: float
) -> None:
    packed, _ = matrix(any_quant, 0, 20, 512)
    x = normal(1, 11, 512)
    clean = linear(pool, any_quant, packed, 20, x)
    x[4, 50] = bad
    out = linear(pool, any_quant, packed, 20, x)
    assert not np.isfinite(out[4]).any()
    others = np.arange(11) != 4
    np.testing.assert_array_equal(bits(out[others]), bits(clean[others]))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38, 9e-31])
def test_inputs_next_to_zero_give_next_to_zero(pool: _kernels.ThreadPool, quant: _kernels.Quant, value: float) -> None:
    packed = _kernels.pack(quant, "tiles", normal(0, 20, 64))
    out = linear(pool, quant, packed, 20, np.full((3, 64), value, np.float32))
    assert (np.abs(out) <= 64 * 8 * abs(value)).all()


def test_the_largest_finite_inputs_do_not_break_the_int8_rounding(pool: _kernels.ThreadPool) -> None:
    x = np.full((1, 64), np.finfo(np.float32).max, np.float32)
    w = np.full((16, 64), 1e-3, np.float32)
    for quant in ("q8_0", "q4_0"):
        out = linear(pool, quant, _kernels.pack(quant, "tiles", w), 16, x)
        np.testing.assert_allclose(out, 64e-3 * np.finfo(np.float32).max, rtol=1e-2)


def test_weights_at_both_ends_of_their_range_do_not_saturate(pool: _kernels.ThreadPool, quant: _kernels.Quant) -> None:
    w = np.tile(np.array([[-8.0], [8.0]], np.float32), (8, 64))
    w[:, 1::2] *= -1
    for x in (np.ones((1, 64), np.float32), np.tile(np.array([[1.0, -1.0]], np.float32), (1, 32))):
        kept = numpy_reference.unpack(quant, w)
        out = linear(pool, quant, _kernels.pack(quant, "tiles", w), 16, x)
        np.testing.assert_allclose(out, numpy_reference.linear(quant, kept, x), rtol=1e-6, atol=1e-4)


def test_hostile_q8_bytes_of_minus_128_count_as_minus_128(pool: _kernels.ThreadPool) -> None:
    packed = _kernels.pack("q8_0", "tiles", np.ones((16, 32), np.float32))
    packed[32:] = 0  # q + 128 = 0
    scale = np.float32(packed[:2].view(np.float16)[0])
    out = linear(pool, "q8_0", packed, 16, np.ones((1, 32), np.float32))
    np.testing.assert_allclose(out, -128 * 32 * scale, rtol=1e-6)


def test_no_tokens_is_no_work(pool: _kernels.ThreadPool, quant: _kernels.Quant) -> None:
    packed = _kernels.pack(quant, "tiles", normal(0, 16, 32))
    assert linear(pool, quant, packed, 16, np.empty((0, 32), np.float32)).shape == (0, 16)


def test_every_byte_of_a_read_counts(pool: _kernels.ThreadPool) -> None:
    data = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
    mix = _kernels.read_memory(pool, data)
    for i in (0, 255, 256, 767, 768, 999):
        data[i] ^= 1
        assert _kernels.read_memory(pool, data) != mix
        data[i] ^= 1
    assert _kernels.read_memory(pool, data) == mix
