"""Which expert to evict. A policy is a pure class over keys: no memory, no files, no clock of its own.

So that the same class serves the running cache and the replay of a trace. A key is layer * experts per layer + expert.

Layers are gone through in order, token by token. So an expert's next use is a number of layers away, between 1 and all
of them, plus as many whole tokens as pass without it; a policy that estimates how often an expert is used evicts the
one whose next use it expects last. `victim` is asked between reads, which is why the default's arithmetic is native.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallthinker import _cache

Floats = npt.NDArray[np.float32]


class EvictionPolicy(Protocol):
    """Told what is asked for, inserted and removed; asked for a victim among what it holds."""

    def insert(self, key: int) -> None:
        """Resident from now on: its read starts."""

    def remove(self, key: int) -> None:
        """Evicted, or its read failed. Raises KeyError for what isn't resident."""

    def use(self, layer: int, keys: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1) -> None:
        """A layer of `tokens` tokens asked for these distinct keys, resident or not; `counts` of the tokens for each
        (None: all of them). Layers come in order; before the insertions that follow from it."""

    def step(self, tokens: int = 1) -> None:
        """All layers of a decode step, or of a chunk of `tokens`, have been used."""

    def victim(self, pinned: Collection[int], layer: int) -> int | None:
        """The resident to evict while `layer` is served, never a pinned one; None when all are. Doesn't remove it."""

    def score(self, key: int) -> float:
        """Estimated chance of use per token: a guess is worth a slot when its score is above the victim's."""

    def state(self) -> Floats:
        """Estimated chances of use, float32 [keys]; a copy."""

    def restore(self, state: Floats) -> None:
        """Begin with what another run's `state` had learned. Raises ValueError for another size."""


class _Scored(ABC):
    """What the simpler policies share: how late each key's next use is expected, and which keys are resident.

    `_lateness` is float64 [keys], in any unit.
    """

    def __init__(self, experts: Sequence[int], per_token: Sequence[int]) -> None:
        """experts: of each layer; per_token: how many of them a token uses."""
        self._per_token, n = sum(per_token), sum(experts)
        self._lateness = np.zeros(n)
        self._absent = np.full(n, -np.inf)  # 0 for residents

    def insert(self, key: int) -> None:
        self._absent[key] = 0

    def remove(self, key: int) -> None:
        if self._absent[key] != 0:
            raise KeyError(key)
        self._absent[key] = -np.inf

    def victim(self, pinned: Collection[int], layer: int) -> int | None:
        late = self._lateness + self._absent
        late[list(pinned)] = -np.inf
        worst = int(late.argmax())
        return None if late[worst] == -np.inf else worst

    def score(self, key: int) -> float:
        return float(self.state()[key])

    @abstractmethod
    def state(self) -> Floats:
        """As `EvictionPolicy.state`."""


def _checked(state: Floats, keys: int) -> npt.NDArray[np.float64]:
    if state.shape != (keys,) or not np.isfinite(state).all():
        raise ValueError(f"state: expected {keys} finite numbers, found shape {state.shape}")
    return np.clip(state.astype(np.float64), 0, 1)


class LRU(_Scored):
    """Evicts what was used longest ago."""

    def __init__(self, experts: Sequence[int], per_token: Sequence[int]) -> None:
        super().__init__(experts, per_token)
        self._clock = 0

    def insert(self, key: int) -> None:
        super().insert(key)
        self._touch([key])

    def use(self, layer: int, keys: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1) -> None:
        self._touch(keys)

    def _touch(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._clock += 1
            self._lateness[key] = -self._clock

    def step(self, tokens: int = 1) -> None:
        pass

    def state(self) -> Floats:
        age = (self._clock + self._lateness) / self._per_token  # in tokens
        chance: npt.NDArray[np.float64] = np.where(self._lateness < 0, 1 / (1 + age), 0)
        return chance.astype(np.float32)

    def restore(self, state: Floats) -> None:
        order = np.argsort(_checked(state, len(self._lateness)), kind="stable")
        self._lateness[order] = -np.arange(1, len(order) + 1)
        self._clock = len(order)


class LFU(_Scored):
    """Evicts what was used by the fewest tokens; counts are halved at times, so that the past fades."""

    AGEING_TOKENS = 256

    def __init__(self, experts: Sequence[int], per_token: Sequence[int]) -> None:
        super().__init__(experts, per_token)
        self._tokens = self._since = 0.0

    def use(self, layer: int, keys: Sequence[int], counts: Sequence[int] | None = None, tokens: int = 1) -> None:
        self._lateness[list(keys)] -= tokens if counts is None else counts

    def step(self, tokens: int = 1) -> None:
        self._tokens += tokens
        self._since += tokens
        while self._since >= self.AGEING_TOKENS:
            self._since -= self.AGEING_TOKENS
            self._tokens /= 2
            self._lateness /= 2

    def state(self) -> Floats:
        return np.clip(-self._lateness / max(self._tokens, 1), 0, 1).astype(np.float32)

    def restore(self, state: Floats) -> None:
        self._tokens = float(self.AGEING_TOKENS // 2)
        self._lateness[:] = -_checked(state, len(self._lateness)) * self._tokens


class Frequency(_cache.Frequency):
    """Evicts what is expected to be used last: by the share of tokens that use it, and by how far its layer is from the
    one being served.

    How much of the past tells about the next token depends on the model and the text. Where routing follows the text,
    as with random weights, an average over 200 tokens loses up to 14 points of the hit rate whenever the text changes;
    where it doesn't, as in the demo, one over 12 loses two. So there are three, weighted by how well each has foretold
    the last few tokens: never worse than the best of them by more than a tenth of a point, see docs/benchmarks.md.
    """

    MEMORY_TOKENS = (12.0, 50.0, 200.0)
    JUDGED_TOKENS = 10.0
    TRUST = 16.0
    # The first tokens count for more, as if these many had been seen that used all experts alike.
    PRIOR_TOKENS = 8
    # What an earlier run learned counts as so many tokens more. Where routing depends on the text, trusting it like a
    # full memory cost 8 to 20 points of the hit rate over the next 64 tokens; this little costs 1 to 2, and where
    # routing is the same for all texts keeps half of the gain.
    RESTORED_TOKENS = 8
    # An expert that was never used is not used never: the least chance of use per token that is reckoned with.
    LEAST_CHANCE = 1e-3

    def __init__(self, experts: Sequence[int], per_token: Sequence[int]) -> None:
        super().__init__(
            experts,
            per_token,
            memory_tokens=self.MEMORY_TOKENS,
            prior_tokens=self.PRIOR_TOKENS,
            judged_tokens=self.JUDGED_TOKENS,
            trust=self.TRUST,
            least_chance=self.LEAST_CHANCE,
        )
        self._keys = sum(experts)

    def restore(self, state: Floats) -> None:
        self.restore_chances(_checked(state, self._keys), self.RESTORED_TOKENS)


Factory = Callable[[Sequence[int], Sequence[int]], EvictionPolicy]
"""(experts of each layer, how many of them a token uses) -> a policy."""

POLICIES: dict[str, Factory] = {
    "lru": LRU,
    "lfu": LFU,
    "frequency": Frequency,
}
DEFAULT_POLICY: Factory = Frequency
"""The one that hits most in replays; see docs/benchmarks.md."""
