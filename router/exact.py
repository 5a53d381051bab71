"""The exact pre-attention router: which experts a layer needs, known before its attention runs.

Follows the SmallThinker report (arXiv 2507.20984): the router reads the raw residual, so its answer is the
true one, not a guess. Knows nothing about where experts are or whether they are in memory.

Shape letters: T tokens, d hidden_size, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.router.predictor import Matrices


class Route(NamedTuple):
    """`ids` int32 [T, k], best first; `weights` float32 [T, k], summing to 1 for each token."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


class ExactRouter:
    """`weights[l]` is layer l's router matrix [E, d], packed as float32 tiles; `predictor` answers for later layers."""

    def __init__(
        self,
        pool: _kernels.ThreadPool,
        weights: Sequence[npt.NDArray[np.uint8]],
        hidden_size: int,
        num_experts: int,
        num_experts_per_tok: int,
        gating: Literal["softmax", "sigmoid"],
        predictor: Matrices | None = None,
    ) -> None:
        self._pool = pool
        self._weights = weights
        self._num_experts = num_experts
        self._k = num_experts_per_tok
        self._gating: Literal["softmax", "sigmoid"] = gating
        self.of_token = _kernels.TokenRouter(
            pool, list(weights), num_experts, hidden_size, num_experts_per_tok, gating, predictor or {}
        )

    def route(self, layer: int, x: npt.NDArray[np.float32]) -> Route:
        """x: the residual [T, d] before any norm of this layer."""
        shape = len(x), self._k
        route = Route(np.empty(shape, np.int32), np.empty(shape, np.float32))
        _kernels.router(self._pool, self._weights[layer], self._num_experts, x, self._k, self._gating, *route)
        return route

    def route_token(self, layer: int, x: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> list[int]:
        """The same for one token, x [1, d], in a third of Python's time: ids, best first; fills weights [1, k]."""
        return self.of_token.route(layer, x, weights)

    def route_tokens(
        self, layer: int, x: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
    ) -> tuple[list[int], list[list[int]]]:
        """The same for a few tokens, x [T, d], weights [T, k]: the distinct experts, ascending, and the pairs of each,
        as in `planner.ExpertWork`."""
        return self.of_token.route_several(layer, x, weights)

    def guess(self, source: int, x: npt.NDArray[np.float32], targets: Sequence[int]) -> list[list[int]]:
        """What each layer in `targets` will choose for one token, best first, as its predictor says of the state x
        [1, d] after the attention of layer `source`; without one, what it would choose if x didn't change until there.
        Source FINAL is what goes into the head, for the next token's layers; it needs a predictor."""
        return self.of_token.guess(source, x, targets)

    def guess_tokens(
        self, source: int, x: npt.NDArray[np.float32], targets: Sequence[int]
    ) -> list[tuple[list[int], list[int]]]:
        """The same for a few tokens, x [T, d]: of each target its distinct experts, with the best rank that a token
        gives each."""
        return self.of_token.guess_several(source, x, targets)
