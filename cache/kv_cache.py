"""Keys and values of past positions: whole for global layers, a ring for sliding-window layers, as f16 or q8_0.

Owns their shapes, bytes and how far back the cache may be rewound. Knows nothing about attention.

Shape letters: K key/value heads, C capacity in positions, D head_dim.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from math import prod
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.errors import RequestError
from smallthinker.host import pages
from smallthinker.models.description import Model

KvKind = Literal["f16", "q8"]
QUANTS: dict[KvKind, _kernels.KvQuant] = {"f16": "f16", "q8": "q8_0"}


def check_kind(config: Model, kind: str) -> _kernels.KvQuant:
    """The kernels' name of a kind of cache. Raises RequestError where the model can't have it."""
    if kind not in QUANTS:
        raise RequestError(f"kv: expected f16 or q8, found {kind!r}")
    quant = QUANTS[kind]
    odd = next((dim for dim in head_dims(config) if dim % _kernels.BLOCK), None)
    if quant == "q8_0" and odd is not None:
        raise RequestError(
            f"kv: q8 needs a head_dim that is a multiple of {_kernels.BLOCK}, this model has {odd}; use f16"
        )
    return quant


def head_dims(config: Model) -> list[int]:
    """Of each layer."""
    return [layer.attention.head_dim for layer in config.layers]


def layer_capacity(config: Model, layer: int, context: int, chunk: int) -> int:
    """Positions that a layer must hold for `context` tokens computed in chunks of up to `chunk`, in whole groups.

    A chunk writes all its keys before its first query looks back a whole window, hence window + chunk - 1.
    """
    window = config.layers[layer].attention.window
    positions = min(context, window + chunk - 1) if window else context
    return -(-positions // _kernels.KV_GROUP) * _kernels.KV_GROUP


def kv_cache_bytes(config: Model, context: int, chunk: int, kind: KvKind = "f16") -> int:
    """Bytes of keys and values together, all layers."""
    total = 0
    for number, layer in enumerate(config.layers):
        row_bytes = _kernels.packed_bytes(QUANTS[kind], "rows", 1, layer.attention.head_dim)
        total += layer_capacity(config, number, context, chunk) * 2 * layer.attention.kv_heads * row_bytes
    return total


def kv_touched_bytes(config: Model, context: int, chunk: int, kind: KvKind, positions: int) -> int:
    """Bytes that a cache made for `context` really takes once `positions` have been written, in whole pages."""
    groups = -(-positions // _kernels.KV_GROUP)
    total = 0
    for number, layer in enumerate(config.layers):
        group_bytes = _kernels.packed_bytes(QUANTS[kind], "tiles", _kernels.KV_GROUP, layer.attention.head_dim)
        most = layer_capacity(config, number, context, chunk) // _kernels.KV_GROUP
        nbytes = min(groups, most) * group_bytes
        total += 2 * layer.attention.kv_heads * min(nbytes + mmap.PAGESIZE, most * group_bytes)
    return total


class Ring(NamedTuple):
    """A sliding-window layer's ring, in positions."""

    capacity: int
    window: int


def rings(config: Model, context: int, chunk: int) -> list[Ring]:
    """Those of the sliding-window layers, in order."""
    windows = [(number, layer.attention.window) for number, layer in enumerate(config.layers)]
    return [Ring(layer_capacity(config, layer, context, chunk), window) for layer, window in windows if window]


def can_continue(rings: Sequence[Ring], length: int, written: int) -> bool:
    """Whether, of a cache written up to `written`, the first `length` positions can be continued: no ring has
    overwritten what the next one sees."""
    for capacity, window in rings:
        oldest_seen = max(0, length - window + 1)
        if oldest_seen < length and written - capacity > oldest_seen:
            return False
    return True


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they have in common at their beginning."""
    longest = min(len(a), len(b))
    if list(a[:longest]) == list(b[:longest]):
        return longest
    return int(np.argmax(np.asarray(a[:longest]) != np.asarray(b[:longest])))


class KVCache:
    """`keys[l]` and `values[l]`: uint8 [K, C / 16, bytes of 16 positions], as `_kernels.kv_append` lays them out;
    `layers[l]`: the same for the kernels. One sequence's; several may be kept.

    `length` is the number of positions held; it grows only after every layer has written a chunk. `quant` is the
    kernels' name of the numbers' format. `overflow`: the first layer that has been given a number beyond its range, and
    that number.
    """

    def __init__(self, config: Model, context: int, chunk: int, kind: KvKind = "f16") -> None:
        self.context, self.kind = context, kind
        self.length = 0
        self.quant = check_kind(config, kind)
        self.overflow: tuple[int, float] | None = None
        dims = head_dims(config)
        self._q8_is_possible = not any(dim % _kernels.BLOCK for dim in dims)
        self._written = 0  # a cancelled chunk may have written past `length`
        layers = range(config.num_layers)
        self._rings = rings(config, context, chunk)
        capacities = [layer_capacity(config, layer, context, chunk) for layer in layers]
        shapes = [
            (
                layer.attention.kv_heads,
                capacity // _kernels.KV_GROUP,
                _kernels.packed_bytes(self.quant, "tiles", _kernels.KV_GROUP, layer.attention.head_dim),
            )
            for layer, capacity in zip(config.layers, capacities, strict=True)
        ]
        self.keys = [_zeros(shape) for shape in shapes]
        self.values = [_zeros(shape) for shape in shapes]
        self.layers = [
            _kernels.KvLayer(self.quant, k, v, dim) for k, v, dim in zip(self.keys, self.values, dims, strict=True)
        ]

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
        overflows = [(layer, at.overflow) for layer, at in enumerate(self.layers) if at.overflow]
        self.overflow = overflows[0] if overflows else None

    def check_range(self) -> None:
        """Raises RequestError when a key or value was beyond what the cache's numbers hold: it is infinite there."""
        if self.overflow is None:
            return
        layer, value = self.overflow
        largest = 65504 if self.kind == "f16" else 65504 * 127
        fits_q8 = self.kind == "f16" and value < 65504 * 127 and self._q8_is_possible
        remedy = "kv q8 holds it" if fits_q8 else "check the store with `smallthinker inspect --verify`"
        raise RequestError(
            f"kv: expected keys and values of at most {largest}, the largest number in {self.kind}, found "
            f"{value:.6g} in layer {layer}; {remedy}"
        )

    def can_rewind(self, length: int) -> bool:
        """Whether the first `length` positions can be continued."""
        if length > self.length or (length and self.overflow is not None):
            return False
        return can_continue(self._rings, length, self._written)

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on. The caller has asked `can_rewind`."""
        assert self.can_rewind(length), (length, self.length)
        self.length = length
        if length == 0:
            self._discard()
            self._written = 0
            self.overflow = None
            for layer in self.layers:
                layer.overflow = 0.0

    def arrays(self, written: int) -> Iterator[tuple[str, list[npt.NDArray[np.uint8]]]]:
        """What a cache written up to `written` has written: name and, for each head, the groups of positions."""
        groups = -(-written // _kernels.KV_GROUP)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            yield f"layers.{layer}.keys", [head[:groups] for head in keys]
            yield f"layers.{layer}.values", [head[:groups] for head in values]

    def restore(self, length: int, written: int) -> None:
        """`arrays(written)` have been filled with what another cache held in its first `length` positions."""
        self.length, self._written = length, written

    def copy_from(self, other: KVCache) -> None:
        """Hold what `other` holds, a cache of the same shape: its positions, and how far back it can be rewound."""
        self.rewind(0)
        groups = -(-other._written // _kernels.KV_GROUP)
        for to, source in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            to[:, :groups] = source[:, :groups]
        self.length, self._written = other.length, other._written

    def _discard(self) -> None:
        """Give back the memory of what is forgotten."""
        for array in (*self.keys, *self.values):
            pages.discard(array.ctypes.data, array.nbytes)

    def free(self) -> None:
        """Give the memory back; the cache is of no use afterwards."""
        self.keys, self.values, self.layers = [], [], []


def _zeros(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """On a page of its own, so that no vector lies across cache lines; pages come when first written, so a short chat
    stays small."""
    return np.frombuffer(host.aligned_buffer(prod(shape)), np.uint8, prod(shape)).reshape(shape)
