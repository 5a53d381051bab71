"""How tokens are to be picked: the parameters, their defaults and their limits.

Knows nothing about how it is done (sampling.py), nor numpy: the command line's help shows the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallthinker.arguments import number, whole


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
        """Makes plain numbers of numpy's. Raises RequestError, naming the parameter."""
        self._set("temperature", number("temperature", self.temperature, lambda t: t >= 0, "a number of 0 or more"))
        self._set("top_k", whole("top_k", self.top_k, 0, expected="0 (off) or a larger whole number"))
        self._set("top_p", number("top_p", self.top_p, lambda p: 0 < p <= 1, "a number above 0, at most 1 (off)"))
        self._set("min_p", number("min_p", self.min_p, lambda p: 0 <= p < 1, "a number of 0 (off) or more, below 1"))
        self._set(
            "repeat_penalty",
            number("repeat_penalty", self.repeat_penalty, lambda r: r > 0, "a number above 0; 1 is off"),
        )
        self._set("repeat_last_n", whole("repeat_last_n", self.repeat_last_n, 0))
        if self.seed is not None:
            self._set("seed", whole("seed", self.seed, 0, 2**64 - 1, "a whole number from 0 to 2**64 - 1, or None"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for everybody else
