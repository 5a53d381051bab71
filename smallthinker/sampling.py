"""From logits to the next token. Knows nothing about text, models or time.

Deterministic: the same seed, parameters and logits give the same tokens.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from smallthinker.errors import RequestError
from smallthinker.sampling_params import SamplingParams


class Sampler:
    """One answer's sampler: holds the random state and the tokens that the repetition penalty looks at."""

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self.params = params
        self._rng = np.random.default_rng(params.seed)
        self._recent = list(prompt)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """logits [V] float32, not changed -> token id. Raises RequestError when a logit is NaN, or all are -inf."""
        p = self.params
        largest = logits.max()
        if math.isnan(largest):
            raise RequestError("logits: the model computed NaN; check the store with `smallthinker inspect --verify`")
        if largest == -math.inf:
            raise RequestError("logits: the logits processor allows no token at all")
        if p.repeat_penalty != 1.0 and p.repeat_last_n and self._recent:
            logits = logits.copy()
            recent = np.unique(self._recent[-p.repeat_last_n :])
            hit = logits[recent]
            logits[recent] = np.where(hit > 0, hit / p.repeat_penalty, hit * p.repeat_penalty)
        token = int(np.argmax(logits)) if p.temperature == 0 else self._draw(logits)
        self._recent.append(token)
        return token

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        p = self.params
        if p.top_k and p.top_k < len(logits):
            ids = np.argpartition(logits, -p.top_k)[-p.top_k :]
            ids.sort()  # partition order is an accident; ties below resolve to the lower id
        else:
            ids = np.arange(len(logits))
        kept = logits[ids].astype(np.float64)
        order = np.argsort(-kept, kind="stable")
        ids, kept = ids[order], kept[order]
        probs = np.exp((kept - kept[0]) / p.temperature)
        probs /= probs.sum()
        if p.top_p < 1:
            # the smallest set whose mass reaches top_p: keep a token while the mass before it is below top_p
            probs = probs[np.cumsum(probs) - probs < p.top_p]
        if p.min_p > 0:
            probs = probs[probs >= p.min_p * probs[0]]
        cumulative = np.cumsum(probs)
        pick = np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")
        return int(ids[min(int(pick), len(cumulative) - 1)])
