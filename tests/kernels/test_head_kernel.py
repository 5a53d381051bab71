from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import bits, linear, normal, seeds, tokens, widths

from smallthinker import _kernels


@given(data=st.data(), seed=seeds, rows=st.integers(1, 150), n_tokens=tokens)
def test_chosen_groups_have_the_bits_of_the_whole_product_and_the_others_stay(
    pools: list[_kernels.ThreadPool], quant: _kernels.Quant, data: st.DataObject, seed: int, rows: int, n_tokens: int
) -> None:
    w = normal(seed, rows, data.draw(widths(quant)))
    x = normal(seed + 1, n_tokens, w.shape[1])
    packed = _kernels.pack(quant, "tiles", w)
    whole = linear(pools[0], quant, packed, rows, x)
    groups = sorted(data.draw(st.sets(st.integers(0, (rows - 1) // 16)), label="groups"))
    is_chosen = np.isin(np.arange(rows) // 16, groups)
    expected = np.where(is_chosen, whole, np.float32(-np.inf))
    for pool in pools:
        out = np.full((n_tokens, rows), -np.inf, np.float32)
        _kernels.linear_groups(pool, quant, packed, rows, w.shape[1], np.array(groups, np.int32), x, out)
        np.testing.assert_array_equal(bits(out), bits(expected))
