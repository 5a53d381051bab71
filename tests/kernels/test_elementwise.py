from __future__ import annotations

import numpy as np
import numpy_reference
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import bits, normal, seeds

from smallthinker import _kernels


@given(seed=seeds, tokens=st.integers(0, 6), dim=st.integers(1, 200), exponent=st.integers(-15, 15))
def test_rmsnorm_matches_the_reference(seed: int, tokens: int, dim: int, exponent: int) -> None:
    x, weight = normal(seed, tokens, dim) * np.float32(10.0**exponent), normal(seed + 1, dim)
    out = np.empty_like(x)
    _kernels.rmsnorm(x, weight, 1e-6, out)
    np.testing.assert_allclose(out, numpy_reference.rmsnorm(x, weight, 1e-6), rtol=1e-5, atol=1e-30)


def test_rmsnorm_of_a_token_does_not_depend_on_the_others_and_may_be_in_place() -> None:
    x, weight = normal(0, 7, 100), normal(1, 100)
    together, alone = np.empty_like(x), np.empty_like(x)
    _kernels.rmsnorm(x, weight, 1e-6, together)
    for t in range(7):
        _kernels.rmsnorm(x[t : t + 1], weight, 1e-6, alone[t : t + 1])
    _kernels.rmsnorm(x, weight, 1e-6, x)
    np.testing.assert_array_equal(bits(together), bits(alone))
    np.testing.assert_array_equal(bits(together), bits(x))


def test_rmsnorm_of_zeros_is_zero_and_of_nan_is_nan() -> None:
    x = np.zeros((2, 32), np.float32)
    x[1, 3] = np.nan
    _kernels.rmsnorm(x, np.ones(32, np.float32), 1e-6, x)
    assert not x[0].any()
    assert np.isnan(x[1]).all()


@given(
    seed=seeds,
    tokens=st.integers(0, 5),
    heads=st.integers(1, 4),
    pairs=st.integers(1, 70),
    rest=st.integers(0, 5),
    pairing=st.sampled_from(["half", "interleaved"]),
)
def test_rope_matches_the_reference_and_leaves_the_rest_of_a_head_alone(
    seed: int, tokens: int, heads: int, pairs: int, rest: int, pairing: _kernels.Pairing
) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 32768, tokens)
    frequencies, factors = 1.5e6 ** -(np.arange(pairs) / pairs), rng.uniform(0.5, 2, pairs)
    cos, sin = np.empty((tokens, pairs), np.float32), np.empty((tokens, pairs), np.float32)
    _kernels.rope_angles(positions, frequencies, factors, cos, sin)
    for out, angles in zip((cos, sin), numpy_reference.rope_angles(positions, frequencies, factors), strict=True):
        np.testing.assert_allclose(out, angles, rtol=0, atol=2e-7)
    x = normal(seed, tokens, heads, 2 * (pairs + rest))
    before, expected = x.copy(), numpy_reference.rope(x, cos, sin, pairing)
    _kernels.rope(x, cos, sin, pairing)
    np.testing.assert_allclose(x, expected, rtol=0, atol=4e-6)
    np.testing.assert_array_equal(x[..., 2 * pairs :], before[..., 2 * pairs :])


def test_position_zero_rotates_nothing() -> None:
    cos, sin = np.empty((1, 8), np.float32), np.empty((1, 8), np.float32)
    _kernels.rope_angles(np.zeros(1, np.int64), np.linspace(1, 1e-4, 8), np.ones(8), cos, sin)
    x = normal(0, 1, 3, 16)
    expected = x.copy()
    _kernels.rope(x, cos, sin, "half")
    np.testing.assert_array_equal(x, expected)


def test_add_adds_in_place() -> None:
    x, y = normal(0, 3, 37), normal(1, 3, 37)
    expected = x + y
    _kernels.add(x, y)
    np.testing.assert_array_equal(x, expected)
