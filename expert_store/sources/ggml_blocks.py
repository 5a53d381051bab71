"""ggml's blocks of 32 weights, rearranged as the kernels read them: bytes move, no weight is computed.

So weights that were quantised elsewhere stay exactly what they were, whatever chose their scales. The layouts are those
of docs/format.md. Knows nothing about files.

Shape letters: R rows, B blocks of a row, G groups of rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.expert_store.format import BLOCK, QUANTS, TILE_ROWS, Layout, Quant

U8 = npt.NDArray[np.uint8]

BLOCK_QUANTS = tuple(quant for quant in QUANTS if _kernels.formats()[quant][0] > 1)
_SCALE_BYTES = 2
_VECTOR_BYTES = 4  # of one row, side by side in a tile


def block_scales(blocks: U8) -> npt.NDArray[np.float16]:
    """[R, B]: the f16 that a block begins with."""
    return np.ascontiguousarray(blocks[:, :, :_SCALE_BYTES]).view("<f2")[:, :, 0]


def can_rearrange(quant: Quant, blocks: U8) -> bool:
    """Whether the kernels can read these levels: q8_0 has one, -128, that no rounding gives and no kernel expects."""
    return quant != "q8_0" or not bool((blocks[:, :, _SCALE_BYTES:] == 0x80).any())


def rearrange(quant: Quant, layout: Layout, blocks: U8) -> U8:
    """uint8 [R, B, block bytes] -> uint8 [packed bytes], as `_kernels.pack` gives for the weights that they mean.

    A block of zeros (scale 0, of either sign) becomes the one that the kernels write.
    """
    zero = _zero_block(quant)
    rows, count, block_bytes = blocks.shape
    blocks = blocks.copy()
    blocks[block_scales(blocks) == 0] = zero
    if layout == "rows":
        packed = np.empty((rows, count * block_bytes), np.uint8)
        levels = count * (block_bytes - _SCALE_BYTES)
        packed[:, :levels] = blocks[:, :, _SCALE_BYTES:].reshape(rows, -1)
        packed[:, levels:] = blocks[:, :, :_SCALE_BYTES].reshape(rows, -1)
        return packed.reshape(-1)
    padding = np.broadcast_to(zero, (-rows % TILE_ROWS, count, block_bytes))
    blocks = np.concatenate([blocks, padding])
    groups = blocks.reshape(-1, TILE_ROWS, count, block_bytes)
    scales = groups[..., :_SCALE_BYTES].transpose(0, 2, 1, 3)  # [G, B, row, 2]
    vectors = groups[..., _SCALE_BYTES:].reshape(*groups.shape[:3], -1, _VECTOR_BYTES)
    vectors = vectors.transpose(0, 2, 3, 1, 4)  # [G, B, vector, row, 4]
    tiles = np.empty((len(groups), count, TILE_ROWS * block_bytes), np.uint8)
    tiles[:, :, : TILE_ROWS * _SCALE_BYTES] = scales.reshape(len(groups), count, -1)
    tiles[:, :, TILE_ROWS * _SCALE_BYTES :] = vectors.reshape(len(groups), count, -1)
    if quant == "q8_0":
        tiles[:, :, TILE_ROWS * _SCALE_BYTES :] ^= 0x80  # int8 to q + 128
    return tiles.reshape(-1)


def _zero_block(quant: Quant) -> U8:
    packed = _kernels.pack(quant, "rows", np.zeros((1, BLOCK), np.float32))
    return np.roll(packed, _SCALE_BYTES)  # the kernels' rows end with the scale
