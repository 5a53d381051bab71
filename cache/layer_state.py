"""What one layer keeps of a sequence, for those who plan, rewind, copy and save it: its shape, and its memory.

Owns the memory, and which mixer keeps what. What lies in the memory is the shape's and the kernels' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.cache.kv_ring import KvKind, KvRing
from smallthinker.errors import ConfigError
from smallthinker.host import pages
from smallthinker.models.description import Attention, Layer

U8 = npt.NDArray[np.uint8]


class LayerShape(Protocol):
    """What a layer keeps for a context, before it has any memory: frozen, and equal to its like."""

    @property
    def arrays(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes in bytes, by the names under which they are saved."""

    @property
    def saved_as(self) -> str:
        """What a file must have been written for, besides the model and the kind of numbers. May be empty."""

    def can_be(self, kind: KvKind) -> bool:
        """Whether it can have this kind of numbers."""

    def touched_bytes(self, positions: int) -> int:
        """Bytes that it really takes once `positions` have been written, in whole pages."""

    def can_continue(self, length: int, written: int) -> bool:
        """Whether, of what was written up to position `written`, the first `length` positions can be continued. A chunk
        that was cancelled counts as written: it is computed again from the same length."""

    def written_parts(self, array: U8, positions: int) -> list[U8]:
        """Views of what `positions` have written of one of the arrays, each contiguous."""

    def bind(self, arrays: Mapping[str, U8]) -> _kernels.KvLayer | None:
        """The arrays as the kernels take them; None for one that has none."""


@dataclass(frozen=True)
class Borrowed:
    """Nothing of its own: the layer reads what layer `of` keeps. A `LayerShape`."""

    of: int
    saved_as = ""

    @property
    def arrays(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def can_be(self, kind: KvKind) -> bool:
        return True

    def touched_bytes(self, positions: int) -> int:
        return 0

    def can_continue(self, length: int, written: int) -> bool:
        return True

    def written_parts(self, array: U8, positions: int) -> list[U8]:
        return []

    def bind(self, arrays: Mapping[str, U8]) -> None:
        return None


def layer_shape(layer: Layer, context: int, chunk: int, kind: KvKind) -> LayerShape:
    """For `context` tokens computed in chunks of up to `chunk`, numbers of that kind. Raises ConfigError for a mixer
    whose state isn't known here, RequestError for a kind that it can't have."""
    if isinstance(layer.mixer, Attention) and layer.mixer.kv_of is not None:
        return Borrowed(layer.mixer.kv_of)
    if isinstance(layer.mixer, Attention):
        return KvRing.of(layer.mixer, context, chunk, kind)
    raise ConfigError(f"mixer: what a sequence keeps is known for Attention, not for {type(layer.mixer).__name__}")


class LayerState:
    """One sequence's memory in one layer; `bound` is the same for the kernels."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape
        self.arrays = {name: _zeros(size) for name, size in shape.arrays.items()}
        self.bound = shape.bind(self.arrays)

    @property
    def overflow(self) -> float:
        """The largest finite number given to it that was beyond its kind's range; 0.0 for none."""
        return 0.0 if self.bound is None else self.bound.overflow

    def written(self, positions: int) -> dict[str, list[U8]]:
        """What the first `positions` that were written have filled, by array."""
        return {name: self.shape.written_parts(array, positions) for name, array in self.arrays.items()}

    def copy_from(self, other: LayerState, positions: int) -> None:
        """Hold what another of the same shape holds."""
        theirs = other.written(positions)
        for name, parts in self.written(positions).items():
            for to, source in zip(parts, theirs[name], strict=True):
                to[:] = source

    def discard(self) -> None:
        """Forget everything and give the memory back until it is written again."""
        for array in self.arrays.values():
            pages.discard(array.ctypes.data, array.nbytes)
        self.forget_overflow()

    def forget_overflow(self) -> None:
        if self.bound is not None:
            self.bound.overflow = 0.0


def _zeros(shape: tuple[int, ...]) -> U8:
    """On a page of its own, so that no vector lies across cache lines; pages come when first written, so a short chat
    stays small."""
    return np.frombuffer(host.aligned_buffer(prod(shape)), np.uint8, prod(shape)).reshape(shape)
