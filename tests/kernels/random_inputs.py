"""Random inputs of a given seed, shape and size, and the closeness that f32 sums of them can have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from smallthinker import _kernels

F32 = npt.NDArray[np.float32]
Make = Callable[..., F32]

seeds = st.integers(0, 2**32 - 1)
tokens = st.integers(1, 19)


def widths(quant: str) -> st.SearchStrategy[int]:
    """Columns: whole blocks, in every remainder of a strip of four, or any number where there are no blocks."""
    return st.integers(1, 9).map(lambda n: 32 * n) if quant in ("q8_0", "q4_0") else st.integers(1, 150)


def at_most(examples: int) -> settings:
    """For slow tests: fewer examples than the profile has, never more."""
    return settings(max_examples=min(examples, settings.default.max_examples))


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def uneven(seed: int, *shape: int) -> F32:
    """Blocks of 32 columns of very different size, some of them zero, minus zero or denormal; none overflows a sum."""
    rng = np.random.default_rng(seed)
    blocks = (*shape[:-1], -(-shape[-1] // 32))
    size = np.float32(10) ** rng.integers(-12, 12, blocks).astype(np.float32)
    size = rng.choice(np.array([1, 1, 1, 0, -0.0, 1e-42], np.float32), blocks) * size
    return normal(seed, *shape) * np.repeat(size.astype(np.float32), 32, -1)[..., : shape[-1]]


def random_blocks(quant: _kernels.Quant, seed: int, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """ggml's blocks of whole rows, of any bytes."""
    nbytes = _kernels.packed_bytes(quant, "rows", rows, cols)
    return np.random.default_rng(seed).integers(0, 256, (rows, nbytes // rows), dtype=np.uint8)


def bits(x: F32) -> npt.NDArray[np.uint32]:
    """For comparisons in which 0 and -0 differ and a NaN equals itself."""
    return x.view(np.uint32)


def assert_near(
    out: F32, expected: npt.NDArray[np.float64], magnitude: npt.NDArray[np.float64], rtol: float = 2e-5
) -> None:
    """Within what rounding does to a sum whose terms' absolute values add up to `magnitude`."""
    np.testing.assert_array_less(np.abs(out - expected), rtol * magnitude + 1e-30)


def linear(pool: _kernels.ThreadPool, quant: _kernels.Quant, data: npt.NDArray[np.uint8], rows: int, x: F32) -> F32:
    out = np.full((len(x), rows), 7, np.float32)
    _kernels.linear(pool, quant, data, rows, x.shape[1], x, out)
    return out
