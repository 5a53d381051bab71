"""Whether proposing tokens pays, and how many: by what they cost and gained lately, at a bounded price for finding out.

Owns running estimates: seconds of a plain token, what a batch costs beside it, how often each kind of proposal is
right. And an account, in plain tokens: what speculation lost is taken from it, what it gained is added, and what isn't
there is not spent, even if all that is proposed were wrong. Knows no clock: it is told seconds.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from smallthinker.generation.speculation.offer import Offer

# Of the plain tokens' time, so much may be lost to trying; and what an answer may lose before it has earned any.
_SHARE, _CREDIT = 0.01, 1.0
# Gains that are kept for later losses.
_MAX_CREDIT = 8.0
# A batch must promise so much more than plain tokens: estimates err.
_MARGIN = 1.05
# Plain tokens whose median is a plain token's time, and how many must be known.
_PLAIN, _FEWEST_PLAIN = 7, 3
# What a proposed token is thought to cost beside a plain one before any batch was seen: between dense models, whose
# batches share every weight (0.2), and sparse ones, whose tokens want different experts (0.5). And what it may, if the
# disk is the limit.
_FIRST_COST, _FIRST_PRICE = 0.4, 1.0
_COST_WEIGHT = 0.3  # of the last batch, in its size's average
_COST_TOKENS = (
    64  # plain tokens after which a cost is forgotten: the cache, and who else computes, may be others by then
)
_BATCHES = 32  # at most, until a plain token is computed again for comparison
# How much a kind's first guess counts, in proposals; what is kept of the others for each batch, each time that the kind
# wasn't worth proposing, and at each answer.
_PRIOR, _KEEP, _IDLE, _NEXT_ANSWER = 2.0, 0.9, 0.97, 0.5


class _Chance:
    """That a proposed token of a kind is right, if those before it were."""

    def __init__(self, first: float) -> None:
        self._first, self._right, self._wrong = first, 0.0, 0.0

    @property
    def value(self) -> float:
        return (self._right + _PRIOR * self._first) / (self._right + self._wrong + _PRIOR)

    def add(self, right: int, wrong: int) -> None:
        self.forget(_KEEP)
        self._right += right
        self._wrong += wrong

    def forget(self, kept: float) -> None:
        self._right *= kept
        self._wrong *= kept


class Payoff:
    """Of one engine. A kind is a name for proposals that are about as often right."""

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=_PLAIN)
        self._plain_tokens = self._batches = 0
        self._costs: dict[int, tuple[float, int]] = {}  # batch size -> plain tokens' times, and when that was seen
        self._chances: dict[str, _Chance] = {}
        self.credit = _CREDIT

    @property
    def plain_sec(self) -> float:
        """Of a plain token; 0.0 while too few are known."""
        n = len(self._plain)
        return sorted(self._plain)[n // 2] if n >= _FEWEST_PLAIN else 0.0

    def begin_answer(self) -> None:
        """Another text: what the last one earned is not for this one to lose."""
        self.credit = min(self.credit, _CREDIT)
        for chance in self._chances.values():
            chance.forget(_NEXT_ANSWER)

    def plain(self, sec: float) -> None:
        """A token was computed without proposals."""
        self._plain.append(sec)
        self._plain_tokens += 1
        self._batches = 0
        self.credit = min(self.credit + _SHARE, _MAX_CREDIT)

    @property
    def affords_sec(self) -> float:
        """What may be lost."""
        return max(self.credit, 0.0) * self.plain_sec

    def verified(self, kind: str, proposed: int, right: int, sec: float, proposing_sec: float = 0.0) -> float:
        """A batch took so long, `proposing_sec` of it what it was proposed in; how many of its proposals were right.
        Returns the seconds saved, which may be negative."""
        plain = self.plain_sec
        if plain:
            cost, size = (sec - proposing_sec) / plain, proposed + 1
            known = self._cost_of(size)
            average = cost if known is None else (1 - _COST_WEIGHT) * known + _COST_WEIGHT * cost
            self._costs[size] = average, self._plain_tokens
            self.credit = min(self.credit + 1 + right - sec / plain, _MAX_CREDIT)
        self._batches += 1
        self._chances[kind].add(right, int(right < proposed))
        return (1 + right) * plain - sec

    def choose(self, offer: Offer, most: int) -> tuple[int, float]:
        """How many of the offered tokens to propose, at most `most`, and how many times as fast as plain ones that is
        thought to be; (0, 1.0): none. What is spent once, `sec_first`, must be there, but needn't pay at once."""
        chance = self._chances.setdefault(offer.kind, _Chance(offer.first_chance))
        plain = self.plain_sec
        if not plain or self._batches >= _BATCHES:
            return 0, 1.0
        best, gain, is_worth = 0, 1.0, False
        expected = right = 1.0
        for proposed in range(1, most + 1):
            right *= chance.value
            expected += right
            proposing = proposed * offer.sec_each / plain
            cost = self.cost(proposed + 1) + proposing
            if expected / cost <= max(gain, _MARGIN):
                continue
            is_worth = True
            price = cost - 1 if self._knows_costs else proposed * _FIRST_PRICE + proposing
            price += offer.sec_first / plain
            if price <= self.credit:
                best, gain = proposed, expected / cost
        if not is_worth:
            chance.forget(_IDLE)
        return best, gain

    def cost(self, size: int) -> float:
        """Plain tokens' times that a batch of so many takes: as seen; between the sizes that were seen; beyond them by
        the nearest one's cost of a proposal."""
        sizes = {1: 1.0} | {n: cost for n in sorted(self._costs) if (cost := self._cost_of(n)) is not None}
        for (low, less), (high, more) in pairwise(sizes.items()):
            if low <= size <= high:
                return less + (more - less) * (size - low) / (high - low)
        largest, cost = next(reversed(sizes.items()))
        each = (cost - 1) / (largest - 1) if largest > 1 else _FIRST_COST
        return cost + each * (size - largest)

    @property
    def _knows_costs(self) -> bool:
        return any(self._cost_of(size) is not None for size in self._costs)

    def _cost_of(self, size: int) -> float | None:
        cost, seen = self._costs.get(size, (0.0, -_COST_TOKENS))
        return cost if self._plain_tokens - seen < _COST_TOKENS else None
