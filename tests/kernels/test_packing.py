from __future__ import annotations

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import F32, bits, matrix, normal, seeds, uneven, widths

from smallthinker import _kernels

BLOCK_QUANTS: list[_kernels.Quant] = ["q8_0", "q4_0"]
K_QUANTS: list[_kernels.Quant] = ["q4_k", "q6_k"]


def relative_error(quant: _kernels.Quant, w: F32) -> float:
    """Squared, of what packing keeps, to the squares of the weights."""
    kept = _kernels.unpack(quant, "tiles", _kernels.pack(quant, "tiles", w), *w.shape)
    return float(((kept - w) ** 2).sum() / (w**2).sum())


def test_searched_scales_and_mins_leave_a_fifth_less_error_than_a_scale_alone_at_the_same_bits() -> None:
    w = normal(0, 16, 2048)
    assert relative_error("q4_k", w) < 0.8 * relative_error("q4_0", w)
    assert relative_error("q6_k", w) < 3e-4
    shifted = w * np.float32(0.1) - np.float32(0.5)  # a min of its own pays even more here
    assert relative_error("q4_k", shifted) < 0.3 * relative_error("q4_0", shifted)


@given(seed=seeds, exponent=st.integers(-8, 6), spread=st.integers(1, 4))
def test_no_block_of_q4_0_errs_more_where_it_counts_than_one_that_ggml_rounds(
    seed: int, exponent: int, spread: int
) -> None:
    w = np.clip(normal(seed, 8, 256) ** spread * np.float32(10.0**exponent), -5e5, 5e5).reshape(-1, 32)
    scale, n = numpy_reference.plain_q4_0(w)
    plain = scale.astype(np.float64)[..., None] * (n.astype(np.float64) - 8)
    kept = _kernels.unpack("q4_0", "rows", _kernels.pack("q4_0", "rows", w), *w.shape).astype(np.float64)
    counts = np.sqrt(
        w.astype(np.float64) ** 2 + (w.astype(np.float64) ** 2).mean(-1, keepdims=True)
    )  # in 13 bits of it
    errors, plain_errors = ((kept - w) ** 2 * counts).sum(-1), ((plain[:, 0] - w) ** 2 * counts).sum(-1)
    assert (errors <= plain_errors * 1.1 + 1e-12).all()


def test_searched_scales_of_q4_0_leave_less_error() -> None:
    w = normal(0, 16, 2048)
    scale, n = numpy_reference.plain_q4_0(w)
    plain = (scale.astype(np.float64)[..., None] * (n.astype(np.float64) - 8)).reshape(w.shape)
    assert relative_error("q4_0", w) < 0.92 * float(((plain - w) ** 2).sum() / (w**2).sum())


@pytest.mark.parametrize("extreme", [8, 7, 6])
def test_blocks_that_are_q4_0_already_stay_what_they_are(extreme: int) -> None:
    levels = np.random.default_rng(extreme).integers(1 - extreme, extreme, (64, 32)).astype(np.float32)
    levels[:, 5] = -extreme
    w = levels * np.random.default_rng(0).uniform(1e-3, 1, (64, 1)).astype(np.float16).astype(np.float32)
    kept = _kernels.unpack("q4_0", "tiles", _kernels.pack("q4_0", "tiles", w), *w.shape)
    np.testing.assert_array_equal(kept, w)


@pytest.mark.parametrize("quant", K_QUANTS)
@given(seed=seeds, rows=st.integers(1, 20), exponent=st.integers(-30, 4))
def test_searched_weights_of_every_size_are_near(quant: _kernels.Quant, seed: int, rows: int, exponent: int) -> None:
    w = uneven(seed, rows, 256) if exponent == 4 else normal(seed, rows, 256) * np.float32(10.0**exponent)
    w = np.clip(w, -1e4, 1e4)
    kept = _kernels.unpack(quant, "tiles", _kernels.pack(quant, "tiles", w), rows, 256)
    assert np.isfinite(kept).all()
    largest = np.abs(w).max(-1, keepdims=True)  # of the block, which has one scale of scales; f16 rounds and ends
    # the sum of squares is what the search makes small: a single weight of 30,000 blocks is off by up to 0.14
    assert (np.abs(kept - w) <= 0.2 * largest + 1e-4).all()


@pytest.mark.parametrize("quant", K_QUANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_of_256_with_a_nan_or_an_infinity_is_nan_and_its_neighbours_are_not(
    quant: _kernels.Quant, bad: float
) -> None:
    w = normal(0, 3, 768)
    w[1, 300] = bad
    unpacked = _kernels.unpack(quant, "tiles", _kernels.pack(quant, "tiles", w), 3, 768)
    assert np.isnan(unpacked[1, 256:512]).all()
    unpacked[1, 256:512] = 0
    assert np.isfinite(unpacked).all()


@pytest.mark.parametrize("quant", K_QUANTS)
def test_zeros_and_equal_weights_stay_what_they_are(quant: _kernels.Quant) -> None:
    for value in (0.0, -0.0, 0.5, -0.5):
        w = np.full((2, 256), value, np.float32)
        kept = _kernels.unpack(quant, "tiles", _kernels.pack(quant, "tiles", w), 2, 256)
        np.testing.assert_allclose(kept, w, rtol=2e-3)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40), exponent=st.integers(-45, 38))
def test_packed_bytes_are_those_of_the_written_layout(
    quant: _kernels.Quant, layout: _kernels.Layout, data: st.DataObject, seed: int, rows: int, exponent: int
) -> None:
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        w = np.clip(normal(seed, rows, data.draw(widths(quant))) * np.float32(10.0**exponent), -largest, largest)
        expected = numpy_reference.pack(quant, layout, w)
    packed = _kernels.pack(quant, layout, w)
    assert len(packed) == _kernels.packed_bytes(quant, layout, *w.shape)
    np.testing.assert_array_equal(packed, expected)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40))
def test_unpacking_gives_exactly_what_the_bytes_mean(
    quant: _kernels.Quant, layout: _kernels.Layout, data: st.DataObject, seed: int, rows: int
) -> None:
    w = normal(seed, rows, data.draw(widths(quant)))
    unpacked = _kernels.unpack(quant, layout, _kernels.pack(quant, layout, w), *w.shape)
    np.testing.assert_array_equal(unpacked, numpy_reference.unpack(quant, w))


@given(data=st.data(), seed=seeds)
def test_packing_what_was_unpacked_changes_nothing(
    quant: _kernels.Quant, layout: _kernels.Layout, data: st.DataObject, seed: int
) -> None:
    w = normal(seed, 17, data.draw(widths(quant)))
    once = _kernels.unpack(quant, layout, _kernels.pack(quant, layout, w), *w.shape)
    twice = _kernels.unpack(quant, layout, _kernels.pack(quant, layout, once), *w.shape)
    np.testing.assert_allclose(twice, once, rtol=2e-3, atol=0)


def test_padding_rows_of_tiles_mean_zero(quant: _kernels.Quant) -> None:
    packed = _kernels.pack(quant, "tiles", normal(0, 3, 64))
    assert not _kernels.unpack(quant, "tiles", packed, 16, 64)[3:].any()


def test_every_f16_value_survives_and_every_f32_rounds_as_numpy_does(layout: _kernels.Layout) -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    wide = _kernels.unpack(
        "f16", layout, _kernels.pack("f16", layout, every.astype(np.float32).reshape(256, 256)), 256, 256
    )
    is_nan = np.isnan(every).reshape(256, 256)
    np.testing.assert_array_equal(wide[~is_nan], every.reshape(256, 256)[~is_nan].astype(np.float32))
    assert np.isnan(wide[is_nan]).all()

    random_bits = np.random.default_rng(0).integers(0, 2**32, (64, 512), dtype=np.uint32).view(np.float32)
    finite = np.where(np.isnan(random_bits), np.float32(0), random_bits)
    halfway = (np.arange(2048, dtype=np.float32) * np.float32(0.5) + 2048).reshape(4, 512)
    for w in (finite, halfway, -halfway, halfway * np.float32(2.0**-30), np.full((1, 32), 65519.996, np.float32)):
        with np.errstate(over="ignore"):
            expected = w.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(
            _kernels.unpack("f16", layout, _kernels.pack("f16", layout, w), *w.shape), expected
        )


def test_every_bf16_value_survives_and_every_f32_rounds_to_nearest_even(layout: _kernels.Layout) -> None:
    every = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32).reshape(256, 256)
    kept = _kernels.unpack("bf16", layout, _kernels.pack("bf16", layout, every), 256, 256)
    is_nan = np.isnan(every)
    np.testing.assert_array_equal(bits(kept[~is_nan]), bits(every[~is_nan]))
    assert np.isnan(kept[is_nan]).all()

    w = np.random.default_rng(0).integers(0, 2**32, (64, 512), dtype=np.uint32).view(np.float32)
    w[0] = (np.arange(512, dtype=np.uint32) << 15 | 0x3F800000).view(np.float32)  # every other one halfway
    rounded = _kernels.unpack("bf16", layout, _kernels.pack("bf16", layout, w), *w.shape)
    np.testing.assert_array_equal(bits(rounded)[~np.isnan(w)], bits(numpy_reference.unpack("bf16", w))[~np.isnan(w)])
    hidden = np.array([[0x7F800001, 0xFFFFFFFF] * 16], np.uint32).view(np.float32)  # NaN in the lower half alone
    assert np.isnan(_kernels.unpack("bf16", layout, _kernels.pack("bf16", layout, hidden), 1, 32)).all()


@pytest.mark.parametrize("quant", BLOCK_QUANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_a_nan_or_an_infinity_is_nan_and_its_neighbours_are_not(
    quant: _kernels.Quant, layout: _kernels.Layout, bad: float
) -> None:
    w = normal(0, 3, 96)
    w[1, 40] = bad
    unpacked = _kernels.unpack(quant, layout, _kernels.pack(quant, layout, w), 3, 96)
    assert np.isnan(unpacked[1, 32:64]).all()
    unpacked[1, 32:64] = 0
    assert np.isfinite(unpacked).all()


@pytest.mark.parametrize("quant", BLOCK_QUANTS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-40, 1e-30])
def test_blocks_too_small_for_a_scale_become_zero(quant: _kernels.Quant, layout: _kernels.Layout, value: float) -> None:
    w = np.full((2, 32), value, np.float32)
    assert not _kernels.unpack(quant, layout, _kernels.pack(quant, layout, w), 2, 32).any()


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40))
def test_embedding_gathers_rows_of_the_unpacked_matrix(
    any_quant: _kernels.Quant, data: st.DataObject, seed: int, rows: int
) -> None:
    packed, w = matrix(any_quant, seed, rows, data.draw(widths(any_quant)))
    ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=5)), np.int32)
    out = np.empty((len(ids), w.shape[1]), np.float32)
    _kernels.embed(any_quant, packed, rows, w.shape[1], ids, out)
    np.testing.assert_array_equal(out, w[ids])
