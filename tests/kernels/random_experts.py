"""Random experts of a layer, packed into records, and calls of the kernels that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import numpy.typing as npt
import numpy_reference
from random_inputs import F32, meaning, normal, random_blocks

from smallthinker import _kernels

if TYPE_CHECKING:
    Quants = _kernels.Quant | _kernels.FfnQuants  # of a whole expert, or of gate, up and down
    Shape = tuple[_kernels.FfnQuants, int, int, _kernels.Activation, bool]

THE_ONE = np.array([[0]])  # expert of one token


def choose(seed: int, tokens: int, experts: int, k: int) -> npt.NDArray[np.int64]:
    return np.argsort(np.random.default_rng(seed).random((tokens, experts)), axis=1)[:, :k]


def neurons(quant: _kernels.Quant, tiles: int) -> int:
    """So many tiles of 16, and what makes whole blocks of them."""
    block = _kernels.formats()[quant][0]
    return -(-16 * tiles // block) * block


@dataclass
class Layer:
    """Random experts as records, and as the matrices that the records mean: gate and up [ffn, hidden], down
    [hidden, ffn]."""

    shape: Shape
    sections: list[_kernels.Section]
    slots: npt.NDArray[np.uint8]
    matrices: list[tuple[F32, F32, F32]]

    @classmethod
    def random(
        cls,
        quants: Quants,
        hidden: int,
        ffn: int,
        n: int,
        seed: int,
        activation: _kernels.Activation = "relu",
        gated: bool = True,
    ) -> Layer:
        return cls.of(quants, [tuple(normal(seed + e, 3, ffn, hidden)) for e in range(n)], activation, gated)

    @classmethod
    def of(
        cls,
        quants: Quants,
        experts: list[tuple[F32, ...]],
        activation: _kernels.Activation = "relu",
        gated: bool = True,
    ) -> Layer:
        """gate, up and down of each expert, [ffn, hidden] all three."""
        if isinstance(quants, str):
            quants = (quants, quants, quants)
        ffn, hidden = experts[0][0].shape
        sections = _kernels.record_sections(quants, hidden, ffn, activation, gated)
        # What lies between the sections must not matter. Nothing lies behind the last one, where a step too far shows.
        slots = np.full((len(experts), sections[-1].offset + sections[-1].nbytes), 0xEE, np.uint8)
        matrices = []
        for record, (gate, up, down) in zip(slots, experts, strict=True):
            kept = [] if gated else [np.empty((0, hidden), np.float32)]
            roles = (gate, up, down.T) if gated else (up, down.T)
            for quant, w, section in zip(quants[-len(sections) :], roles, sections, strict=True):
                stored = np.ascontiguousarray(w.T if section.is_transposed else w)
                assert stored.shape == (section.rows, section.cols)
                if _kernels.can_pack(quant) and quant in numpy_reference.MADE:
                    packed, back = _kernels.pack(quant, section.layout, stored), numpy_reference.unpack(quant, stored)
                else:  # any blocks of that size, others for other weights
                    blocks = random_blocks(quant, crc32(stored.tobytes()), *stored.shape, of_size=True)
                    packed, back = _kernels.repack(quant, section.layout, blocks), meaning(quant, blocks)
                record[section.offset : section.offset + section.nbytes] = packed
                kept.append(back.T if section.is_transposed else back)
            matrices.append((kept[0], kept[1], kept[2]))
        return cls((quants, hidden, ffn, activation, gated), sections, slots, matrices)

    @property
    def quants(self) -> _kernels.FfnQuants:
        return self.shape[0]

    def run(self, pool: _kernels.ThreadPool, x: F32, chosen: npt.NDArray[np.int64]) -> tuple[F32, int]:
        """chosen [T, k] experts of each token; experts are given in descending order, pairs ascending."""
        k, hidden = chosen.shape[1], self.shape[1]
        ids = np.unique(chosen)[::-1]
        groups = [np.flatnonzero(chosen.ravel() == e) for e in ids]
        offsets = np.cumsum([0] + [len(g) for g in groups]).astype(np.int32)
        pairs = np.concatenate(groups).astype(np.int32)
        out = np.full((chosen.size, hidden), 7, np.float32)
        live = _kernels.experts(pool, *self.shape, x, self.slots, ids.astype(np.int32), offsets, pairs, k, out)
        return out, live
