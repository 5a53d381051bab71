"""What a request does to the logits before a token is drawn: penalties, biases, a grammar.

Called on the thread that computes, once a token; see `LogitsProcessor`.

Shape letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from smallthinker.generation.answer import LogitsProcessor

Logits = npt.NDArray[np.float32]


class Penalties:
    """OpenAI's: `frequency` is taken off for each time that a token has been generated, `presence` once."""

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = np.float32(frequency), np.float32(presence)
        self._counts: dict[int, int] = {}
        self._seen = 0

    def __call__(self, ids: Sequence[int], logits: Logits) -> None:
        for id in ids[self._seen :]:
            self._counts[id] = self._counts.get(id, 0) + 1
        self._seen = len(ids)
        if self._counts:
            known = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[known] -= counts * self._frequency + self._presence


class Bias:
    """Added to the logits of some tokens; as in OpenAI's protocol, -100 bans one and 100 makes it the only one."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = np.fromiter(biases, np.int64, len(biases))
        self._values = np.fromiter(biases.values(), np.float32, len(biases))

    def __call__(self, ids: Sequence[int], logits: Logits) -> None:
        logits[self._ids] += self._values


def in_turn(processors: Sequence[LogitsProcessor]) -> LogitsProcessor | None:
    """One that calls them all; a grammar comes last, since what it forbids must stay forbidden."""
    if len(processors) < 2:
        return processors[0] if processors else None

    def process(ids: Sequence[int], logits: Logits) -> None:
        for processor in processors:
            processor(ids, logits)

    return process
