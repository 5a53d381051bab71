"""Random matrices in packed form: bytes become levels directly, without quantising floats.

Owns the random streams and the packed layouts as docs/format.md describes them, not as the kernels do. Knows nothing
about models.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.expert_store.format import BLOCK, TILE_ROWS, Quant, packed_bytes
from smallthinker.expert_store.synthetic import random_blocks

# Random bytes become levels: one per byte, or two per byte at 4 bits. The lowest level, which has no positive twin, is
# made zero; without that every matrix had a mean of half a step.
BYTE_LEVELS = np.concatenate([[0], np.arange(-127, 128)]).astype(np.float32)
BYTE_STD = float(np.sqrt(np.mean(BYTE_LEVELS.astype(np.float64) ** 2)))
_NIBBLES = np.concatenate([[8], np.arange(1, 16)]).astype(np.uint8)
_NIBBLE_STD = float(np.sqrt(np.mean((_NIBBLES.astype(np.float64) - 8) ** 2)))
_FLOATS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
_Q4_TABLE = bytes(int(_NIBBLES[b & 15] | _NIBBLES[b >> 4] << 4) for b in range(256))
_Q8_TILE_TABLE = bytes(b or 128 for b in range(256))  # as unsigned, 128 is zero
_Q8_ROW_TABLE = bytes(0 if b == 128 else b for b in range(256))  # as signed, 128 is -128


def largest_level(quant: Quant) -> float:
    """In standard deviations of the matrix, for its first column; that of bytes for numbers, which have none."""
    if quant in random_blocks.QUANTS:
        return random_blocks.largest_level(quant)
    return 7 / _NIBBLE_STD if quant == "q4_0" else 127 / BYTE_STD


class RandomBytes:
    """Random bytes of one tensor. A stream per name: no tensor depends on the order of writing or on strip sizes."""

    def __init__(self, seed: int, name: str) -> None:
        self._bits = np.random.SFC64([seed, zlib.crc32(name.encode("ascii"))])

    def bytes(self, n: int) -> bytes:
        raw: npt.NDArray[np.uint64] = self._bits.random_raw(-(-n // 8))
        return raw.astype("<u8", copy=False).tobytes()[:n]

    def weights(self, n: int, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """n entries of a table of 256."""
        return np.take(table, np.frombuffer(self.bytes(n), np.uint8))


def random_tiles(quant: Quant, rows: int, cols: int, std: float, random: RandomBytes) -> npt.NDArray[np.uint8]:
    """Random [rows, cols] in the tiles layout, uint8 [packed bytes]; rows of padding are zero."""
    if quant in random_blocks.QUANTS:
        return _kernels.repack(quant, "tiles", random_blocks.random_blocks(quant, rows, cols, std, random.bytes))
    groups, blocks, padding = -(-rows // TILE_ROWS), cols // BLOCK, -rows % TILE_ROWS
    if quant in _FLOATS:
        floats = random.weights(groups * cols * TILE_ROWS, _float_table(quant, std)).reshape(groups, cols, TILE_ROWS)
        floats[-1, :, TILE_ROWS - padding :] = 0
        return floats.reshape(-1).view(np.uint8)
    table, level_std, vectors, zero = (
        (_Q4_TABLE, _NIBBLE_STD, 4, 0x88) if quant == "q4_0" else (_Q8_TILE_TABLE, BYTE_STD, 8, 128)
    )
    scales = 2 * TILE_ROWS
    tiles = np.empty((groups, blocks, scales + vectors * 64), np.uint8)
    tiles[:, :, :scales] = np.full(TILE_ROWS, std / level_std, "<f2").view(np.uint8)
    payload = np.frombuffer(random.bytes(groups * blocks * vectors * 64).translate(table), np.uint8)
    tiles[:, :, scales:] = payload.reshape(groups, blocks, -1)
    if padding:
        tiles[-1, :, 2 * (TILE_ROWS - padding) : scales] = 0
        tiles[-1, :, scales:].reshape(blocks, vectors, TILE_ROWS, 4)[:, :, TILE_ROWS - padding :] = zero
    return tiles.reshape(-1)


def random_rows(quant: Quant, rows: int, cols: int, std: float, random: RandomBytes) -> npt.NDArray[np.uint8]:
    """Random [rows, cols] in the rows layout, uint8 [packed bytes]."""
    if quant in _FLOATS:
        return random.weights(rows * cols, _float_table(quant, std)).view(np.uint8)
    table, level_std, row_bytes = (
        (_Q4_TABLE, _NIBBLE_STD, cols // 2) if quant == "q4_0" else (_Q8_ROW_TABLE, BYTE_STD, cols)
    )
    packed = np.empty((rows, row_bytes + 2 * cols // BLOCK), np.uint8)
    packed[:, :row_bytes] = np.frombuffer(random.bytes(rows * row_bytes).translate(table), np.uint8).reshape(rows, -1)
    packed[:, row_bytes:] = np.full(cols // BLOCK, std / level_std, "<f2").view(np.uint8)
    return packed.reshape(-1)


def set_first_column(packed: npt.NDArray[np.uint8], quant: Quant, cols: int, values: npt.NDArray[np.float32]) -> None:
    """In place, of tiles of [len(values), cols]; where there are only levels, to the largest. Padding stays zero."""
    if quant in random_blocks.QUANTS:
        random_blocks.set_first_column(packed, quant, cols, len(values))
        return
    group, row = np.divmod(np.arange(len(values)), TILE_ROWS)
    if quant in _FLOATS:
        _floats(packed, quant).reshape(-1, cols, TILE_ROWS)[group, 0, row] = (
            to_bf16(values) if quant == "bf16" else values
        )
    else:
        level = 0x0F if quant == "q4_0" else 0xFF  # the low nibble, or the byte, of the first column
        packed.reshape(-1, cols // BLOCK, packed_bytes(quant, "tiles", TILE_ROWS, BLOCK))[
            group, 0, 2 * TILE_ROWS + 4 * row
        ] |= level


def clear_first_row(packed: npt.NDArray[np.uint8], quant: Quant, cols: int) -> None:
    """In place, of tiles with `cols` columns."""
    if quant in random_blocks.QUANTS:
        random_blocks.clear_first_row(packed, quant, cols)
    elif quant in _FLOATS:
        _floats(packed, quant).reshape(-1, cols, TILE_ROWS)[0, :, 0] = 0
    else:
        packed.reshape(-1, cols // BLOCK, packed_bytes(quant, "tiles", TILE_ROWS, BLOCK))[0, :, :2] = 0  # its scales


def clear_first_column(packed: npt.NDArray[np.uint8], quant: Quant, cols: int) -> None:
    """In place, of rows with `cols` columns."""
    if quant in _FLOATS:
        _floats(packed, quant).reshape(-1, cols)[:, 0] = 0
        return
    first = packed.reshape(-1, packed_bytes(quant, "rows", 1, cols))[:, 0]
    first[:] = first & 0xF0 | 8 if quant == "q4_0" else 0


def to_bf16(floats: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The upper half of a float32, to nearest."""
    return ((floats.astype("<f4").view("<u4") + 0x8000) >> 16).astype("<u2")


def _floats(packed: npt.NDArray[np.uint8], quant: Quant) -> npt.NDArray[Any]:
    return packed.view(_FLOATS[quant])


def _float_table(quant: Quant, std: float) -> npt.NDArray[Any]:
    floats = BYTE_LEVELS * (std / BYTE_STD)
    return to_bf16(floats) if quant == "bf16" else floats.astype(_FLOATS[quant])
