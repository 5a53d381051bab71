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


@given(
    seed=seeds,
    n_tokens=st.integers(0, 3),
    rows=st.integers(1, 9000),
    scale=st.sampled_from([1.0, 0.25, 16.0]),
    softcap=st.sampled_from([0.0, 5.0, 30.0]),
)
def test_logits_are_biased_scaled_and_capped(
    pools: list[_kernels.ThreadPool], seed: int, n_tokens: int, rows: int, scale: float, softcap: float
) -> None:
    logits, bias = normal(seed, n_tokens, rows) * np.float32(20), normal(seed + 1, rows)
    expected = (logits.astype(np.float64) + bias) * scale
    if softcap:
        expected = softcap * np.tanh(expected / softcap)
    outs = []
    for pool in pools:
        outs.append(logits.copy())
        _kernels.finish_logits(pool, outs[-1], bias, scale, softcap)
        np.testing.assert_allclose(outs[-1], expected, rtol=2e-6, atol=2e-7 * max(scale * 20, softcap))
        np.testing.assert_array_equal(bits(outs[-1]), bits(outs[0]))


def test_what_is_no_number_stays_none_under_a_cap_and_what_is_infinite_becomes_the_cap(
    pool: _kernels.ThreadPool,
) -> None:
    logits = np.array([[np.nan, np.inf, -np.inf, 0, 1e30]], np.float32)
    _kernels.finish_logits(pool, logits, np.zeros(5, np.float32), 1.0, 30.0)
    np.testing.assert_array_equal(logits, np.array([[np.nan, 30, -30, 0, 30]], np.float32))
