"""Blocks as files have them, moved to the kernels' layouts: what they mean is what the gguf package says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import meaning, random_blocks, seeds, widths

from smallthinker import _kernels

# Offset in a block, bytes, and how many of a row lie together: the fields of a tile in their order.
TILES: dict[str, list[tuple[int, int, int]]] = {
    "f32": [(0, 4, 4)], "f16": [(0, 2, 2)], "bf16": [(0, 2, 2)], "q8_0": [(0, 2, 2), (2, 32, 4)],
    "q4_0": [(0, 2, 2), (2, 16, 4)], "q4_1": [(0, 2, 2), (2, 2, 2), (4, 16, 4)],
    "q5_0": [(0, 2, 2), (2, 4, 4), (6, 16, 4)], "q5_1": [(0, 2, 2), (2, 2, 2), (4, 4, 4), (8, 16, 4)],
    "iq4_nl": [(0, 2, 2), (2, 16, 4)], "mxfp4": [(0, 1, 1), (1, 16, 4)],
    "iq4_xs": [(0, 2, 2), (2, 2, 1), (4, 4, 1), (8, 128, 4)], "q2_k": [(80, 2, 2), (82, 2, 2), (0, 16, 1), (16, 64, 4)],
    "q3_k": [(108, 2, 2), (96, 12, 1), (0, 32, 4), (32, 64, 4)],
    "q4_k": [(0, 2, 2), (2, 2, 2), (4, 12, 1), (16, 128, 4)],
    "q5_k": [(0, 2, 2), (2, 2, 2), (4, 12, 1), (16, 32, 4), (48, 128, 4)],
    "q6_k": [(208, 2, 2), (192, 16, 1), (0, 64, 4), (128, 32, 4), (64, 64, 4), (160, 32, 4)],
}  # fmt: skip


def test_tiles_are_the_fields_of_blocks_of_16_rows_side_by_side(any_quant: _kernels.Quant) -> None:
    block, nbytes = _kernels.formats()[any_quant]
    cols, rows = 2 * block, 19
    blocks = random_blocks(any_quant, 0, rows, cols)
    padded = np.vstack([blocks, np.zeros((13, blocks.shape[1]), np.uint8)])
    expected = bytearray()
    for group in padded.reshape(2, 16, 2, nbytes):
        for of_block in group.transpose(1, 0, 2):
            for offset, size, unit in TILES[any_quant]:
                for at in range(offset, offset + size, unit):
                    piece = of_block[:, at : at + unit]
                    expected += (piece ^ 0x80 if any_quant == "q8_0" and unit == 4 else piece).tobytes()
    assert _kernels.repack(any_quant, "tiles", blocks).tobytes() == bytes(expected)


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40))
def test_repacked_blocks_of_any_bytes_mean_what_gguf_says(
    any_quant: _kernels.Quant, layout: _kernels.Layout, data: st.DataObject, seed: int, rows: int
) -> None:
    if layout == "rows" and not _kernels.has_rows(any_quant):
        pytest.skip("no rows")
    cols = data.draw(widths(any_quant))
    blocks = random_blocks(any_quant, seed, rows, cols)
    if any_quant == "mxfp4":
        blocks[:, ::17][blocks[:, ::17] == 255] = 0  # nothing finite: the next test
    before = blocks.copy()
    packed = _kernels.repack(any_quant, layout, blocks)
    assert len(packed) == _kernels.packed_bytes(any_quant, layout, rows, cols)
    expected = meaning(any_quant, blocks)
    unpacked = _kernels.unpack(any_quant, layout, packed, rows, cols)
    np.testing.assert_array_equal(unpacked[~np.isnan(expected)], expected[~np.isnan(expected)])
    assert np.isnan(unpacked[np.isnan(expected)]).all()
    np.testing.assert_array_equal(blocks, before)
    if layout == "tiles":
        assert not _kernels.unpack(any_quant, layout, packed, -(-rows // 16) * 16, cols)[rows:].any()


def test_the_scale_of_mxfp4_that_is_no_number_gives_nothing_finite() -> None:
    blocks = np.full((1, 17), 0x70, np.uint8)
    blocks[0, 0] = 255
    assert not np.isfinite(_kernels.unpack("mxfp4", "tiles", _kernels.repack("mxfp4", "tiles", blocks), 1, 32)).any()
