"""MXFP4 as gpt-oss was published: blocks of 32 weights of four bits with a common power of two, in two tensors.

Owns their names, shapes and values (OCP Microscaling Formats, version 1.0). Each expert's rows are what the model's
matrix has as rows, though a checkpoint of numbers has them as columns. Knows nothing about files.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK, BLOCK_BYTES = 32, 16
BLOCKS, SCALES = "_blocks", "_scales"
_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BIAS, _NAN = 127, 255


def packed_shapes(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The two tensors, by name, that hold a tensor [E, C, R] packed; none if it can't be."""
    if len(shape) != 3 or shape[1] % BLOCK:
        return {}
    experts, cols, rows = shape
    return {name + BLOCKS: (experts, rows, cols // BLOCK, BLOCK_BYTES), name + SCALES: (experts, rows, cols // BLOCK)}


def unpack(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """[rows, groups, 16] and [rows, groups] -> float32 [rows, 32 groups]; a scale of 255 is NaN."""
    values = np.empty((*blocks.shape, 2), np.float32)
    values[..., 0], values[..., 1] = _LEVELS[blocks & 15], _LEVELS[blocks >> 4]
    factors = np.ldexp(np.float32(1), np.minimum(scales, _NAN - 1).astype(np.int32) - _BIAS)
    factors[scales == _NAN] = np.nan
    scaled: npt.NDArray[np.float32] = values.reshape(*scales.shape, BLOCK) * factors[..., None]
    return scaled.reshape(len(blocks), -1)


def ggml_blocks(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[rows, groups, 16] and [rows, groups] -> [rows, groups, 17]: the scale, then as ggml has it column i in byte i's
    low nibble and column 16 + i in its high one; here byte i has columns 2i and 2i + 1."""
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 2, BLOCK_BYTES)
    return np.concatenate([scales[..., None], nibbles[..., 0, :] | nibbles[..., 1, :] << 4], -1)
