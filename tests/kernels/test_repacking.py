"""Blocks as files have them, moved to the kernels' layouts: what they mean is what the gguf package says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import random_blocks, seeds, widths

from smallthinker import _kernels

gguf = pytest.importorskip("gguf", reason="needs smallthinker[gguf]")


@given(data=st.data(), seed=seeds, rows=st.integers(1, 40))
def test_repacked_blocks_of_any_bytes_mean_what_gguf_says(
    quant: _kernels.Quant, layout: _kernels.Layout, data: st.DataObject, seed: int, rows: int
) -> None:
    cols = data.draw(widths(quant))
    blocks = random_blocks(quant, seed, rows, cols)
    before = blocks.copy()
    packed = _kernels.repack(quant, layout, blocks)
    assert len(packed) == _kernels.packed_bytes(quant, layout, rows, cols)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[quant.upper()])
    unpacked = _kernels.unpack(quant, layout, packed, rows, cols)
    np.testing.assert_array_equal(unpacked[~np.isnan(expected)], expected[~np.isnan(expected)])
    assert np.isnan(unpacked[np.isnan(expected)]).all()
    np.testing.assert_array_equal(blocks, before)
    if layout == "tiles":
        assert not _kernels.unpack(quant, layout, packed, -(-rows // 16) * 16, cols)[rows:].any()
