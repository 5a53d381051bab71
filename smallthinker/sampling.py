"""From logits to the next token. Knows nothing about text, models or time.

Deterministic: the same seed, parameters and logits give the same tokens.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smallthinker.errors import RequestError


@dataclass(frozen=True)
class SamplingParams:
    """How to pick a token.

    temperature 0 is greedy, whatever the others say. The filters apply in the order top_k, top_p, min_p, each on what
    the ones before left (0, 1 and 0 switch them off). repeat_penalty divides positive and multiplies negative logits of
    the last `repeat_last_n` tokens, prompt included (Keskar et al. 2019). seed None draws a fresh one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises RequestError, naming the parameter."""
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "a number of 0 or more")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1 (off)")
        _check("min_p", self.min_p, 0 <= self.min_p < 1, "0 (off) or more, below 1")
        _check("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty < math.inf, "above 0; 1 is off")
        _check("repeat_last_n", self.repeat_last_n, self.repeat_last_n >= 0, "0 (off) or more")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "0 to 2**64 - 1")


def _check(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise RequestError(f"{name}: expected {expected}, found {value}")


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
