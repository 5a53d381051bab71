"""What a model keeps of a sequence: one `LayerState` a layer, and how many positions they hold.

Owns the bytes of all layers together and which positions can be continued. Knows nothing about how a layer lays out
what it keeps, nor about tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from smallthinker import _kernels
from smallthinker.cache.kv_ring import LARGEST, KvKind
from smallthinker.cache.layer_state import U8, Borrowed, LayerShape, LayerState, layer_shape
from smallthinker.errors import RequestError
from smallthinker.models.description import Model


@dataclass(frozen=True)
class SequenceShape:
    """Of every layer; `kind`: of the numbers, where a layer has a choice."""

    layers: tuple[LayerShape, ...]
    kind: KvKind = "f16"

    @classmethod
    def of(cls, config: Model, context: int, chunk: int, kind: KvKind = "f16") -> SequenceShape:
        """For `context` tokens computed in chunks of up to `chunk`. Raises ConfigError, RequestError."""
        return cls(tuple(layer_shape(layer, context, chunk, kind) for layer in config.layers), kind)

    @property
    def nbytes(self) -> int:
        """Of a whole context."""
        return sum(prod(shape) for layer in self.layers for shape in layer.arrays.values())

    def touched_bytes(self, positions: int) -> int:
        """Bytes really taken once `positions` have been written, in whole pages."""
        return sum(layer.touched_bytes(positions) for layer in self.layers)

    def can_be(self, kind: KvKind) -> bool:
        return all(layer.can_be(kind) for layer in self.layers)

    def can_continue(self, length: int, written: int) -> bool:
        """Whether, of a state written up to `written`, the first `length` positions can be continued."""
        return all(layer.can_continue(length, written) for layer in self.layers)

    @property
    def saved_as(self) -> str:
        """What a file must have been written for, besides the kind."""
        return f"[{', '.join(filter(None, (layer.saved_as for layer in self.layers)))}]"


class SequenceState:
    """One sequence's; several may be kept. `bound[l]` is layer l's state for the kernels.

    `length` is the number of positions held; it grows only after every layer has written a chunk. `overflow`: the first
    layer that has been given a number beyond its range, and that number.
    """

    def __init__(self, shape: SequenceShape) -> None:
        self.shape = shape
        self.length = 0
        self.overflow: tuple[int, float] | None = None
        self._written = 0  # a cancelled chunk may have written past `length`
        self.layers = [LayerState(layer) for layer in shape.layers]
        self.bound = [self._bound(number) for number in range(len(self.layers))]

    def _bound(self, number: int) -> _kernels.KvLayer:
        """The layer's own, or that of the layer whose keys and values it reads."""
        shape = self.layers[number].shape
        bound = self.layers[shape.of if isinstance(shape, Borrowed) else number].bound
        assert bound is not None, shape
        return bound

    def begin(self, tokens: int) -> int:
        """Announce that `tokens` positions will be written from `length` on; returns `length`, where they start."""
        self._written = max(self._written, self.length + tokens)
        return self.length

    def touched_after(self, tokens: int) -> int:
        """Positions whose memory is taken once `tokens` more have been written."""
        return max(self._written, self.length + tokens)

    def advance(self, tokens: int) -> None:
        """Every layer has written them."""
        self.length += tokens
        overflows = [(number, bound.overflow) for number, bound in enumerate(self.bound) if bound.overflow]
        self.overflow = overflows[0] if overflows else None

    def check_range(self) -> None:
        """Raises RequestError when a number was beyond what its kind holds: it is infinite there."""
        if self.overflow is None:
            return
        (layer, value), kind = self.overflow, self.shape.kind
        q8_holds_it = kind == "f16" and value < LARGEST["q8"] and self.shape.can_be("q8")
        remedy = "kv q8 holds it" if q8_holds_it else "check the store with `smallthinker verify`"
        raise RequestError(
            f"kv: expected keys and values of at most {LARGEST[kind]}, the largest number in {kind}, found "
            f"{value:.6g} in layer {layer}; {remedy}"
        )

    def can_rewind(self, length: int) -> bool:
        """Whether the first `length` positions can be continued."""
        if length > self.length or (length and self.overflow is not None):
            return False
        return self.shape.can_continue(length, self._written)

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on. The caller has asked `can_rewind`."""
        assert self.can_rewind(length), (length, self.length)
        self.length = length
        if length == 0:
            for layer in self.layers:
                layer.discard()
            self._written = 0
            self.overflow = None

    def take_back(self, length: int) -> None:
        """Forget the positions from `length` on, which one step has just written; it may have overwritten nothing that
        `length` sees. A number beyond its range is forgotten with them, so none may have been there before."""
        assert length <= self.length and self.shape.can_continue(length, self._written), (length, self.length)
        self.length = length
        if self.overflow is not None:
            self.overflow = None
            for layer in self.layers:
                layer.forget_overflow()

    def arrays(self, written: int) -> Iterator[tuple[str, list[U8]]]:
        """What a state written up to `written` has written: name, and its parts in order."""
        for number, layer in enumerate(self.layers):
            for name, parts in layer.written(written).items():
                yield f"layers.{number}.{name}", parts

    def restore(self, length: int, written: int) -> None:
        """`arrays(written)` have been filled with what another state held in its first `length` positions."""
        self.length, self._written = length, written

    def copy_from(self, other: SequenceState) -> None:
        """Hold what `other` holds, a state of the same shape: its positions, and how far back it can be rewound."""
        self.rewind(0)
        for to, source in zip(self.layers, other.layers, strict=True):
            to.copy_from(source, other._written)
        self.length, self._written = other.length, other._written

    def free(self) -> None:
        """Give the memory back; the state is of no use afterwards."""
        self.layers, self.bound = [], []
