"""Blocks rearranged are the bytes that the kernels pack, and mean what they meant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import _kernels
from smallthinker.expert_store.format import Layout, Quant
from smallthinker.expert_store.sources.ggml_blocks import block_scales, can_rearrange, rearrange


def as_blocks(quant: Quant, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """ggml's blocks [rows, blocks, bytes] of weights, from the rows layout: a row's levels, then its scales."""
    rows, cols = weights.shape
    packed = _kernels.pack(quant, "rows", weights).reshape(rows, -1)
    levels, scales = packed[:, : -cols // 16], packed[:, -cols // 16 :]
    count = cols // 32
    return np.concatenate([scales.reshape(rows, count, 2), levels.reshape(rows, count, -1)], axis=2)


def weights(seed: int, rows: int, cols: int) -> npt.NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    made[:: max(rows // 3, 1), :32] = 0
    return made


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
@pytest.mark.parametrize("layout", ["tiles", "rows"])
@given(rows=st.integers(1, 40), blocks=st.integers(1, 4), seed=st.integers(0, 99))
def test_blocks_rearranged_are_what_the_kernels_pack(
    quant: Quant, layout: Layout, rows: int, blocks: int, seed: int
) -> None:
    w = weights(seed, rows, 32 * blocks)
    assert np.array_equal(rearrange(quant, layout, as_blocks(quant, w)), _kernels.pack(quant, layout, w))


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
@pytest.mark.parametrize("layout", ["tiles", "rows"])
@given(data=st.data(), rows=st.integers(1, 33))
def test_any_levels_and_scales_mean_the_same_afterwards(
    quant: Quant, layout: Layout, data: st.DataObject, rows: int
) -> None:
    """Also of blocks that no rounding would have made."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    blocks = rng.integers(0, 256, (rows, 2, 18 if quant == "q4_0" else 34), np.uint8)
    if quant == "q8_0":
        blocks[:, :, 2:][blocks[:, :, 2:] == 0x80] = 0x81
    blocks[:, :, :2] = rng.standard_normal((rows, 2, 1)).astype("<f2").view(np.uint8)
    scales = block_scales(blocks).astype(np.float32)[:, :, None]
    if quant == "q4_0":
        levels = np.concatenate([blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4], axis=2).astype(np.float32) - 8
    else:
        levels = blocks[:, :, 2:].view(np.int8).astype(np.float32)
    found = _kernels.unpack(quant, layout, rearrange(quant, layout, blocks), rows, 64)
    assert np.array_equal(found, (levels * scales).reshape(rows, 64))


def test_a_zero_of_either_sign_is_one_zero_and_the_given_blocks_stay_as_they_are() -> None:
    blocks = np.full((1, 2, 18), 0x31, np.uint8)
    blocks[0, :, :2] = np.array([0.0, -0.0], "<f2").view(np.uint8).reshape(2, 2)
    before = blocks.copy()
    packed = rearrange("q4_0", "rows", blocks)
    assert np.array_equal(packed, _kernels.pack("q4_0", "rows", np.zeros((1, 64), np.float32)))
    assert np.array_equal(blocks, before)


def test_the_level_that_kernels_do_not_expect_is_told_from_the_same_byte_in_a_scale() -> None:
    blocks = np.zeros((1, 1, 34), np.uint8)
    blocks[0, 0, 1] = 0x80
    assert can_rearrange("q8_0", blocks)
    blocks[0, 0, 33] = 0x80
    assert not can_rearrange("q8_0", blocks)
    assert can_rearrange("q4_0", blocks[:, :, :18] | 0x80)
