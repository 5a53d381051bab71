"""The end of a model: its final norm, and logits of all words or of some. And how a norm's weights are bound.

Knows nothing about layers, nor about what is done with logits.

Shape letters: T tokens, d hidden_size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.expert_store.format import Formats
from smallthinker.models.description import Model, Norm
from smallthinker.models.tensors import FINAL_NORM, HEAD, head_role

Floats = npt.NDArray[np.float32]
Dense = Callable[[str], npt.NDArray[Any]]
"""A dense tensor by its name."""


def bind_norm(how: Norm, size: int, role: str, of: Dense) -> _kernels.Norm:
    """Of `size` numbers. What files have less one is made whole here, once."""
    weight = of(role) if how.has_weight else None
    if weight is not None and how.plus_one:
        weight = weight + np.float32(1)
    bias = of(f"{role}_bias") if how.has_weight and how.bias else None
    return _kernels.Norm(size, how.eps, weight, bias, how.kind)


class ExactHead:
    """Of a model whose dense tensors `of` gives."""

    def __init__(self, config: Model, formats: Formats, pool: _kernels.ThreadPool, of: Dense) -> None:
        role = head_role(config)
        self._how, self._vocab_size, self._d = config.head, config.vocab_size, config.hidden_size
        self._norm = bind_norm(config.final_norm, config.hidden_size, FINAL_NORM, of)
        self._pool, self._quant, self._matrix = pool, formats.of(role, None), of(role)
        self._bias: Floats | None = of(f"{HEAD}_bias") if config.head.bias else None
        self._group_bytes = _kernels.packed_bytes(self._quant, "tiles", _kernels.TILE_ROWS, self._d)

    def normed(self, x: Floats) -> Floats:
        """States [T, d] as the head takes them."""
        normed = np.empty_like(x)
        _kernels.norm(self._norm, x, normed)
        return normed

    def logits(self, normed: Floats, first: int = 0, rows: int | None = None) -> Floats:
        """[T, rows], from row `first` of the vocabulary on, a multiple of TILE_ROWS; without `rows` all that follow."""
        how, end = self._how, self._vocab_size if rows is None else first + rows
        out = np.empty((len(normed), end - first), np.float32)
        begin, past = first // _kernels.TILE_ROWS, -(-end // _kernels.TILE_ROWS)
        part = self._matrix[begin * self._group_bytes : past * self._group_bytes]
        _kernels.linear(self._pool, self._quant, part, end - first, self._d, normed, out)
        if how.bias or how.scale != 1 or how.softcap:
            bias = None if self._bias is None else self._bias[first:end]
            _kernels.finish_logits(self._pool, out, bias, how.scale, how.softcap)
        return out
