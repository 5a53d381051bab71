"""Random matrices in ggml's formats of many fields: bits are random, scales fixed, and the kernels lay the bytes out.

Owns what a block must hold to be zero-mean, and which of its bits are the first column's. Knows nothing about models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.expert_store.format import Quant

U8 = npt.NDArray[np.uint8]
_MXFP4_ONE = 127  # the exponent of a scale of 1
_SAMPLE_BLOCKS = 1024


class _Kind(NamedTuple):
    """halves: where f16 scales lie, the same in each; fixed: bytes that are no numbers, from a place on; top: the bits
    of the first column, by byte, that make it the largest."""

    halves: tuple[int, ...]
    fixed: tuple[int, bytes]
    top: Mapping[int, int]


_KINDS: Mapping[Quant, _Kind] = {
    # scales of 2 and mins of 15: 2 n - 15
    "q4_k": _Kind((0, 2), (4, bytes([2] * 4 + [15] * 4 + [15 << 4 | 2] * 4)), {16: 15}),
    # n - 32 has a mean of half a step: signs of scales alternate
    "q6_k": _Kind((208,), (192, bytes([1, 255] * 8)), {0: 15, 128: 3}),
    "mxfp4": _Kind((), (0, b""), {}),
}
QUANTS = tuple(_KINDS)


def random_blocks(quant: Quant, rows: int, cols: int, std: float, bytes_of: Callable[[int], bytes]) -> U8:
    """Zero-mean [rows, cols] as rows of blocks, uint8 [rows, row bytes]. bytes_of: so many random ones."""
    block, nbytes = _kernels.formats()[quant]
    blocks = np.frombuffer(bytes_of(rows * (cols // block) * nbytes), np.uint8).reshape(-1, nbytes).copy()
    _set_scales(quant, blocks, std / _deviation(quant))
    in_rows: U8 = blocks.reshape(rows, -1)
    return in_rows


def largest_level(quant: Quant) -> float:
    """In standard deviations of the matrix: what `set_first_column` leaves."""
    block, nbytes = _kernels.formats()[quant]
    one = np.zeros((1, nbytes), np.uint8)
    _set_scales(quant, one, 1.0)
    tiles = _kernels.repack(quant, "tiles", one)
    set_first_column(tiles, quant, block, 1)
    return float(_kernels.unpack(quant, "tiles", tiles, 1, block)[0, 0]) / _deviation(quant)


def set_first_column(tiles: U8, quant: Quant, cols: int, rows: int) -> None:
    """In place, to the largest number that there is."""
    block, nbytes = _kernels.formats()[quant]
    bits = np.zeros((rows, cols // block, nbytes), np.uint8)
    for byte, of_byte in _KINDS[quant].top.items():
        bits[:, 0, byte] = of_byte
    tiles |= _kernels.repack(quant, "tiles", bits.reshape(rows, -1))  # which moves bytes, whatever they mean


def clear_first_row(tiles: U8, quant: Quant, cols: int) -> None:
    """In place, of as many rows as there are."""
    block, nbytes = _kernels.formats()[quant]
    row_bytes = cols // block * nbytes
    bits = np.full((len(tiles) // row_bytes, row_bytes), 255, np.uint8)
    bits[0] = 0
    tiles &= _kernels.repack(quant, "tiles", bits)


def _set_scales(quant: Quant, blocks: U8, scale: float) -> None:
    kind = _KINDS[quant]
    if quant == "mxfp4":  # powers of two: the larger one in so many blocks that the variance is right
        power = math.floor(math.log2(scale))
        share = (scale / 2**power) ** 2 / 3 - 1 / 3
        blocks[:, 0] = _MXFP4_ONE + power + (blocks[:, 0] < 256 * share)
        return
    for at in kind.halves:
        blocks[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    start, fixed = kind.fixed
    blocks[:, start : start + len(fixed)] = np.frombuffer(fixed, np.uint8)


@cache
def _deviation(quant: Quant) -> float:
    """Of weights with scales of 1."""
    block, nbytes = _kernels.formats()[quant]
    blocks = np.random.default_rng(0).integers(0, 256, (_SAMPLE_BLOCKS, nbytes), dtype=np.uint8)
    _set_scales(quant, blocks, 1.0)
    weights = _kernels.unpack(quant, "tiles", _kernels.repack(quant, "tiles", blocks), _SAMPLE_BLOCKS, block)
    return float(np.sqrt(np.mean(weights.astype(np.float64) ** 2)))
