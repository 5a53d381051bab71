"""Softmax attention's keys and values: of every position, or of a sliding window's last ones in a ring, as f16 or q8_0.

Owns their shapes, their bytes and which positions a ring still holds. Knows nothing about attention.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import RequestError
from smallthinker.models.description import Attention

KvKind = Literal["f16", "q8"]
QUANTS: dict[KvKind, _kernels.KvQuant] = {"f16": "f16", "q8": "q8_0"}
LARGEST: dict[KvKind, int] = {"f16": 65504, "q8": 65504 * 127}


@dataclass(frozen=True)
class KvRing:
    """Position p lies in place p % capacity; window 0: nothing is overwritten. A `LayerShape`."""

    kv_heads: int
    head_dim: int
    window: int
    capacity: int
    kind: KvKind

    @classmethod
    def of(cls, mixer: Attention, context: int, chunk: int, kind: KvKind) -> KvRing:
        """In whole groups of positions. Raises RequestError for a kind that it can't have.

        A chunk writes all its keys before its first query looks back a whole window, hence window + chunk - 1.
        """
        if kind not in QUANTS:
            raise RequestError(f"kv: expected f16 or q8, found {kind!r}")
        positions = min(context, mixer.window + chunk - 1) if mixer.window else context
        ring = cls(mixer.kv_heads, mixer.head_dim, mixer.window, _groups(positions) * _kernels.KV_GROUP, kind)
        if not ring.can_be(kind):
            raise RequestError(
                f"kv: {kind} needs a head_dim that is a multiple of {_kernels.BLOCK}, this model has {mixer.head_dim}; "
                "use f16"
            )
        return ring

    def can_be(self, kind: KvKind) -> bool:
        return kind == "f16" or self.head_dim % _kernels.BLOCK == 0

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """[kv_heads, groups, bytes of a group], as `_kernels.kv_append` lays them out."""
        shape = (self.kv_heads, self.capacity // _kernels.KV_GROUP, self._group_bytes)
        return {"keys": shape, "values": shape}

    @property
    def saved_as(self) -> str:
        """Of a ring, its capacity: which positions it holds. What is whole lies the same way whatever the context."""
        return str(self.capacity) if self.window else ""

    def touched_bytes(self, positions: int) -> int:
        most = self.capacity // _kernels.KV_GROUP * self._group_bytes
        nbytes = min(_groups(positions) * self._group_bytes, most)
        return 2 * self.kv_heads * min(nbytes + mmap.PAGESIZE, most)

    def can_continue(self, length: int, written: int) -> bool:
        """Whether nothing has been overwritten that position `length` sees."""
        oldest_seen = max(0, length - self.window + 1)
        return not self.window or oldest_seen >= length or written - self.capacity <= oldest_seen

    def written_parts(self, array: npt.NDArray[np.uint8], positions: int) -> list[npt.NDArray[np.uint8]]:
        return [head[: _groups(positions)] for head in array]

    def bind(self, arrays: Mapping[str, npt.NDArray[np.uint8]]) -> _kernels.KvLayer:
        return _kernels.KvLayer(QUANTS[self.kind], arrays["keys"], arrays["values"], self.head_dim)

    @property
    def _group_bytes(self) -> int:
        return _kernels.packed_bytes(QUANTS[self.kind], "tiles", _kernels.KV_GROUP, self.head_dim)


def _groups(positions: int) -> int:
    return -(-positions // _kernels.KV_GROUP)
