"""Random inputs of a given seed, shape and size, and the closeness that f32 sums of them can have."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from smallthinker import _kernels

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Make = Callable[..., F32]

seeds = st.integers(0, 2**32 - 1)
tokens = st.integers(1, 19)


def widths(quant: _kernels.Quant) -> st.SearchStrategy[int]:
    """Columns: whole blocks, in every remainder of a strip of four, or any number where there are no blocks."""
    block = _kernels.formats()[quant][0]
    if block == 1:
        return st.integers(1, 150)
    return st.integers(1, 9 if block == 32 else 3).map(lambda n: block * n)


def at_most(examples: int) -> settings:
    """For slow tests: so many of the twenty that are usual, and the same share of another profile's."""
    return settings(max_examples=examples * settings.default.max_examples // 20)


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def uneven(seed: int, *shape: int) -> F32:
    """Blocks of 32 columns of very different size, some of them zero, minus zero or denormal; none overflows a sum."""
    rng = np.random.default_rng(seed)
    blocks = (*shape[:-1], -(-shape[-1] // 32))
    size = np.float32(10) ** rng.integers(-12, 12, blocks).astype(np.float32)
    size = rng.choice(np.array([1, 1, 1, 0, -0.0, 1e-42], np.float32), blocks) * size
    return normal(seed, *shape) * np.repeat(size.astype(np.float32), 32, -1)[..., : shape[-1]]


# Where scales and mins of a block of ggml's are, and the size of them with which weights are about 1.
HALVES: dict[str, dict[int, float]] = {
    "q8_0": {0: 0.014}, "q4_0": {0: 0.2}, "q4_1": {0: 0.2, 2: 1.5}, "q5_0": {0: 0.1}, "q5_1": {0: 0.1, 2: 1.5},
    "iq4_nl": {0: 0.016}, "iq4_xs": {0: 0.001}, "q2_k": {80: 0.08, 82: 0.1}, "q3_k": {108: 0.02},
    "q4_k": {0: 0.004, 2: 0.03}, "q5_k": {0: 0.002, 2: 0.03}, "q6_k": {208: 0.0008}, "mxfp4": {},
}  # fmt: skip


def random_blocks(quant: _kernels.Quant, seed: int, rows: int, cols: int, of_size: bool = False) -> U8:
    """ggml's blocks of whole rows [rows, row bytes], of any bytes; `of_size`: weights that are finite and about 1."""
    block, nbytes = _kernels.formats()[quant]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, cols // block, nbytes), dtype=np.uint8)
    if of_size and block == 1:
        of_type = {"f32": np.float32, "f16": np.float16}.get(quant)
        w = rng.standard_normal((rows, cols), np.float32)
        return (w.view(np.uint16)[:, 1::2].copy() if of_type is None else w.astype(of_type)).view(np.uint8)
    if of_size:
        for offset, size in HALVES[quant].items():
            scales = (rng.standard_normal(blocks.shape[:2]) * size).astype("<f2")
            blocks[:, :, offset : offset + 2] = scales[..., None].view(np.uint8)
        if quant == "mxfp4":
            blocks[:, :, 0] = rng.integers(123, 127, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def meaning(quant: _kernels.Quant, blocks: U8) -> F32:
    """The weights that ggml's blocks [rows, row bytes] are: what the gguf package says."""
    with np.errstate(all="ignore"):
        weights: F32 = gguf.dequantize(blocks, gguf.GGMLQuantizationType[quant.upper()])
    return weights


def matrix(quant: _kernels.Quant, seed: int, rows: int, cols: int) -> tuple[U8, F32]:
    """Random weights in tiles, and what they are."""
    blocks = random_blocks(quant, seed, rows, cols, of_size=True)
    return _kernels.repack(quant, "tiles", blocks), meaning(quant, blocks)


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
