"""Keys and values of past positions: whole for global layers, a ring for sliding-window layers, as float16.

Owns their shapes, bytes and how far back the cache may be rewound. Knows nothing about attention.

Shape letters: K key/value heads, C capacity in positions, D head_dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from smallthinker.config import ModelConfig

F16_BYTES = 2


def layer_capacity(config: ModelConfig, layer: int, context: int, chunk: int) -> int:
    """Positions that a layer must hold for `context` tokens computed in chunks of up to `chunk`.

    A chunk writes all its keys before its first query looks back a whole window, hence window + chunk - 1.
    """
    window = config.window(layer)
    return min(context, window + chunk - 1) if window else context


def kv_cache_bytes(config: ModelConfig, context: int, chunk: int) -> int:
    """Bytes of keys and values together, all layers."""
    positions = sum(layer_capacity(config, layer, context, chunk) for layer in range(config.num_hidden_layers))
    return positions * 2 * config.num_key_value_heads * config.head_dim * F16_BYTES


class KVCache:
    """`keys[l]` and `values[l]`: uint16 [K, C, D] holding float16 bits; position p lies in slot p % C.

    `length` is the number of positions held; it grows only after every layer has written a chunk.
    """

    def __init__(self, config: ModelConfig, context: int, chunk: int) -> None:
        self.context = context
        self.length = 0
        self._written = 0  # a cancelled chunk may have written past `length`
        self._windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        shapes = [
            (config.num_key_value_heads, layer_capacity(config, layer, context, chunk), config.head_dim)
            for layer in range(config.num_hidden_layers)
        ]
        # zeros, not empty: the kernel hands out pages when first written, so a short chat stays small
        self.keys: list[npt.NDArray[np.uint16]] = [np.zeros(shape, np.uint16) for shape in shapes]
        self.values: list[npt.NDArray[np.uint16]] = [np.zeros(shape, np.uint16) for shape in shapes]

    def begin(self, tokens: int) -> int:
        """Announce that `tokens` positions will be written from `length` on; returns `length`, where they start."""
        self._written = max(self._written, self.length + tokens)
        return self.length

    def advance(self, tokens: int) -> None:
        """Every layer has written them."""
        self.length += tokens

    def can_rewind(self, length: int) -> bool:
        """Whether the first `length` positions can be continued: no ring has overwritten what the next one sees."""
        if length > self.length:
            return False
        for keys, window in zip(self.keys, self._windows, strict=True):
            oldest_seen = max(0, length - window + 1) if window else 0
            if oldest_seen < length and self._written - keys.shape[1] > oldest_seen:
                return False
        return True

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on. The caller has asked `can_rewind`."""
        assert self.can_rewind(length), (length, self.length)
        self.length = length
        if length == 0:
            self._written = 0

    def free(self) -> None:
        """Give the memory back; the cache is of no use afterwards."""
        self.keys, self.values = [], []
