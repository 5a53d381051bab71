"""From logits to the next token. Knows nothing about text, models or time.

Deterministic: the same seed, parameters and logits give the same tokens, on every CPU.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import RequestError
from smallthinker.generation.sampling_params import SamplingParams

Logits = npt.NDArray[np.float32]


class Sampler:
    """One answer's sampler: holds the random state and the tokens that the repetition penalty looks at."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], pool: _kernels.ThreadPool | None = None) -> None:
        """pool: whose threads and scratch memory it may use; no token depends on it."""
        self.params = params
        self._rng = np.random.default_rng(params.seed)
        self._recent = array("i", prompt)
        self._pool = _kernels.ThreadPool(1) if pool is None else pool

    def sample(self, logits: Logits) -> int:
        """logits [V] float32, not changed -> token id; of +inf those share all probability. Raises RequestError when a
        logit is NaN, or all are -inf."""
        p = self.params
        if p.repeat_penalty != 1.0 and p.repeat_last_n and self._recent:
            logits = logits.copy()
            recent = np.frombuffer(self._recent, np.int32)[-p.repeat_last_n :]
            with np.errstate(over="ignore"):  # beyond float32 is what it becomes
                penalty = np.float32(p.repeat_penalty)
            _kernels.penalize(logits, recent, float(penalty))
            del recent  # or the array couldn't grow
        token = self._greedy(logits) if p.temperature == 0 else self._draw(logits)
        if token < 0:
            raise no_token(logits)
        self._recent.append(token)
        return token

    def _greedy(self, logits: Logits) -> int:
        token = int(np.argmax(logits))  # of a NaN, if there is one
        return token if logits[token] > -math.inf else -1

    def _draw(self, logits: Logits) -> int:
        p = self.params
        logits = np.ascontiguousarray(logits)
        u = self._rng.random()
        return _kernels.sample(self._pool, logits, p.temperature, p.top_k or len(logits), p.top_p, p.min_p, u)


def no_token(logits: Logits) -> RequestError:
    """Why none could be drawn."""
    if np.isnan(logits).any():
        return RequestError(
            "logits: expected numbers, found NaN, from a logits processor or from damaged weights; "
            "`smallthinker verify` checks a store"
        )
    return RequestError("logits: the logits processor allows no token at all")
