"""What may come next in an answer: proposals from several sources, where a running trial says that they pay.

A proposal is verified by one batch through the model: each position is sampled as without it, as long as what was
sampled is what was proposed. So no text depends on what is proposed, only its time. Owns whose proposals are taken, and
how many. Knows nothing about how they are verified.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence

from smallthinker.generation.speculation.offer import Offer, Source
from smallthinker.generation.speculation.payoff import Payoff
from smallthinker.generation.speculation.prompt_lookup import PromptLookup
from smallthinker.generation.stats import SpeculationCounters
from smallthinker.options import EngineOptions

# By the length of the match: how often the next token is thought to be the same.
_KINDS = ((9, 0.85), (5, 0.7), (3, 0.5), (2, 0.3))


class LookupSource:
    """What followed the longest earlier match; free."""

    def __init__(self) -> None:
        self._lookup, self._at = PromptLookup(), -1

    def begin(self) -> None:
        self._lookup, self._at = PromptLookup(), -1

    def offer(self, prompt: Sequence[int], ids: Sequence[int], affords_sec: float) -> Offer | None:
        self._lookup.extend(prompt[len(self._lookup) :])
        self._lookup.extend(ids[len(self._lookup) - len(prompt) :])
        length, self._at = self._lookup.match()
        return next((Offer(f"match {n}", chance) for n, chance in _KINDS if length >= n), None)

    def propose(self, most: int) -> list[int]:
        return self._lookup.following(self._at, most)


class Proposer:
    """Of one engine, for one answer at a time."""

    def __init__(
        self, sources: Sequence[Source], payoff: Payoff | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """payoff: None takes every offer, of the first source that has one. clock: seconds, of what proposing takes."""
        self._sources, self._payoff, self._clock = sources, payoff, clock
        self._proposing_sec = 0.0
        self._of: weakref.ref[object] | None = None  # an answer keeps memory that nobody may need any more
        self._kind = ""
        self._proposed = 0

    def propose(self, of: object, prompt: Sequence[int], ids: Sequence[int], most: int) -> list[int]:
        """Tokens that may follow prompt and ids, at most `most`. of: whose text it is."""
        if self._of is None or self._of() is not of:
            self._of = weakref.ref(of)
            for source in self._sources:
                source.begin()
            if self._payoff is not None:
                self._payoff.begin_answer()
        if most < 1:
            return []
        affords_sec = math.inf if self._payoff is None else self._payoff.affords_sec
        best: tuple[float, int, Source | None] = 1.0, 0, None
        for source in self._sources:
            offer = source.offer(prompt, ids, affords_sec)
            if offer is None:
                continue
            if self._payoff is None:
                best = 1.0, most, source
                break
            n, gain = self._payoff.choose(offer, most)
            if n and gain > best[0]:
                best, self._kind = (gain, n, source), offer.kind
        _, n, chosen = best
        began = self._clock()
        proposed = [] if chosen is None else chosen.propose(n)
        self._proposing_sec = self._clock() - began
        self._proposed = len(proposed)
        return proposed

    def computed(self, sec: float, accepted: int = 0) -> SpeculationCounters:
        """What was proposed last has been verified, or without a proposal a token computed, in so many seconds."""
        if not self._proposed:
            if self._payoff is not None:
                self._payoff.plain(sec)
            return SpeculationCounters()
        saved = 0.0
        if self._payoff is not None:
            saved = self._payoff.verified(self._kind, self._proposed, accepted, sec, self._proposing_sec)
        return SpeculationCounters(1, self._proposed, accepted, saved)


def proposer_of(options: EngineOptions, more: Sequence[Source] = ()) -> Proposer | None:
    """What an engine's options ask for, with more sources beside prompt lookup; None for no speculation."""
    if options.speculation == "off":
        return None
    return Proposer([LookupSource(), *more], None if options.speculation == "always" else Payoff())
