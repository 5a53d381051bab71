"""A text as one vector: the model's final states, pooled. An answer that writes nothing: the scheduler reads its prompt
like any other, and it ends where writing would begin.

Shape letters: T tokens of a step, d hidden_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from smallthinker.arguments import choice
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.generation.answer import Answer, Finished, FinishReason, GenerationParams

Pooling = Literal["mean", "last"]


class Embedding(Answer):
    """Of a prompt: its mean or its last state behind the final norm, of length 1. Its completion has it."""

    def __init__(self, engine: Engine, prompt: Sequence[int], pooling: Pooling) -> None:
        """Raises ContextLengthError for what leaves no room for one more token, and RequestError."""
        choice("pooling", pooling, get_args(Pooling))
        super().__init__(engine, prompt, GenerationParams(temperature=0, max_tokens=1, seed=0))
        self._pooling = pooling
        self._pooled = np.zeros(engine.config.hidden_size)

    def see(self, states: npt.NDArray[np.float32]) -> None:
        """The states [T, d] of its next tokens."""
        if self._pooling == "last":
            self._pooled = states[-1].astype(np.float64)
            return
        for state in states:  # one after another: a chunk's own sum would round in an order that the chunk sets
            self._pooled += state

    def push(self, logits: npt.NDArray[np.float32]) -> None:
        self.reason = "stop"

    def finish(self, reason: FinishReason | None = None) -> Finished:
        """Raises RequestError where the states have no direction."""
        finished = super().finish(reason)
        if self.reason != "stop":
            return finished
        length = float(np.linalg.norm(self._pooled))
        if not 0 < length < np.inf:
            raise RequestError(f"embedding: expected states of finite length, found {length}")
        vector = (self._pooled / length).astype(np.float32)
        return replace(finished, completion=replace(finished.completion, embedding=vector))
