"""How tokens are to be picked: the parameters, their defaults and their limits.

Knows nothing about how it is done (sampling.py), nor numpy: the command line's help shows the defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
