"""Tensors are read from their places in files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.expert_store.sources.placed import read_placed
from smallthinker.models.places import Place


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 8), st.sampled_from([1, 4, 16]), st.booleans())
def test_parts_of_wide_blocks_come_as_the_kernels_take_them(
    rows: int, first: int, cols: int, block: int, transposed: bool
) -> None:
    matrix = np.arange(rows * 64, dtype=np.float32).reshape(rows, 64)

    def read(of: range, columns: range) -> npt.NDArray[np.float32]:  # whole blocks, of which a part is wanted
        start, stop = columns.start // block * block, -(-columns.stop // block) * block
        return matrix[of.start : of.stop, start:stop].copy()[:, columns.start - start : columns.stop - start]

    wanted = range(first, first + cols)
    shape = (cols, rows) if transposed else (rows, cols)
    found = read_placed(Place("w", matrix.shape, shape, range(rows), wanted, transposed=transposed), read)
    expected = matrix[:, wanted.start : wanted.stop]
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected.T if transposed else expected)
