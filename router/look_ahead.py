"""Look-ahead: which experts later layers will likely want, guessed from the state of an earlier one.

The residual stream changes little from layer to layer, so the router of a later layer, read early, is often right.
How often is measured for every distance and rank as the exact routes become known; a guess that is too seldom right is
no longer made, only watched now and then. Knows nothing about slots or files: who gets the guesses decides what to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# A wrong guess costs the certain reads at most the chunk that is under way; a right one saves a whole wait.
WORTH = 0.4
_WATCH = 16  # a guess that isn't worth making is made for the record, without a read, every so many tokens
_KEEP = 0.97  # of the running precision, at each guess
_HOPE = 0.7  # a precision to begin with, so that it is tried


class Guess(NamedTuple):
    """Experts that `layer` will want, each with at least this likelihood, likeliest first."""

    layer: int
    experts: list[int]
    likelihood: float


class LookAhead:
    """For one token at a time, layer by layer. `distances`: how many layers ahead, nearest first."""

    def __init__(self, num_layers: int, k: int, distances: Sequence[int]) -> None:
        """k: experts per token. Raises ValueError for a distance below 1."""
        if min(distances) < 1:
            raise ValueError(f"distances: expected 1 or more, found {min(distances)}")
        self._num_layers, self._k, self._distances = num_layers, k, tuple(distances)
        # [layer guessed for][distance][rank]
        self._precision = [{d: [_HOPE] * k for d in distances} for _ in range(num_layers)]
        self._open: list[list[tuple[int, list[int]]]] = [[] for _ in range(num_layers)]  # distance, ids: not judged yet
        self._targets: list[tuple[int, ...]] = [()] * num_layers
        self._tokens = 0

    def targets(self, layer: int) -> tuple[int, ...]:
        """The layers whose routers are to be asked now, with the state before `layer`. Layers come in order."""
        if layer == 0:
            if self._tokens % _WATCH == 0:
                self._targets = [self._worth_asking(at, watch=True) for at in range(self._num_layers)]
            elif self._tokens % _WATCH == 1:
                self._targets = [self._worth_asking(at, watch=False) for at in range(self._num_layers)]
            self._tokens += 1
        return self._targets[layer]

    def _worth_asking(self, layer: int, watch: bool) -> tuple[int, ...]:
        later = [(layer + d, d) for d in self._distances if layer + d < self._num_layers]
        return tuple(target for target, d in later if watch or self._precision[target][d][0] >= WORTH)

    def guesses(self, layer: int, experts: Sequence[int], answers: Sequence[list[int]]) -> list[Guess]:
        """What to expect, given `layer`'s exact experts and what the routers of its `targets` answered."""
        for distance, guessed in self._open[layer]:
            precision = self._precision[layer][distance]
            for rank, expert in enumerate(guessed):
                precision[rank] = _KEEP * precision[rank] + (1 - _KEEP) * (expert in experts)
        self._open[layer].clear()
        found = []
        for target, answer in zip(self._targets[layer], answers, strict=True):
            precision = self._precision[target][target - layer]
            self._open[target].append((target - layer, answer))
            worth = self._k
            while worth and precision[worth - 1] < WORTH:
                worth -= 1
            if worth:
                found.append(Guess(target, answer[:worth], precision[worth - 1]))
        return found

    def precision(self) -> dict[int, float]:
        """Share of the guesses that were right lately, by distance, over all layers and ranks."""
        found: dict[int, float] = {}
        for distance in self._distances:
            values = [p for by_distance in self._precision[distance:] for p in by_distance[distance]]
            found[distance] = sum(values) / len(values) if values else 0.0
        return found
