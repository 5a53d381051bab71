"""Look-ahead: which experts the next layer will likely want, guessed from the state within an earlier one.

The residual stream changes little from layer to layer, so the router of a later layer, asked early, is often right, and
what a store's predictor has learned more often. Best once attention has been added: then only the experts of one layer
are still to come. With a predictor, the first layer is guessed from the final state of the token before, too. How often
is measured as the exact routes become known, for every layer and rank, over those guesses that meant a read: experts
that are resident are guessed more easily. A guess that is too seldom right is no longer made, only watched now and
then. One layer ahead: guesses two and three layers ahead read three to five times as much for nothing. Knows nothing
about slots or files: whoever gets the guesses decides what to read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from smallthinker.router.predictor import FINAL

# A wrong guess costs the certain reads at most the chunk that is under way; a right one saves a part of a wait.
WORTH = 0.5
_WATCH = 16  # a guess that isn't worth making is made for the record, without a read, every so many tokens
_KEEP = 0.95  # of the running precision, at each guess
_HOPE = 0.6  # a precision to begin with, so that it is tried


class _Way:
    """Tokens that were computed one way.

    How many records a token wants is chance and changes its time more than any guess does. So waiting is taken for each
    record, and the rest for each token.
    """

    def __init__(self) -> None:
        self.records: list[int] = []
        self._computing: list[float] = []
        self._waited = 0.0

    def add(self, seconds: float, waited_sec: float, records: int) -> None:
        self.records.append(records)
        self._computing.append(seconds - waited_sec)
        self._waited += waited_sec

    def cost(self, records: float) -> float:
        """Seconds of a token that wants that many."""
        from statistics import median  # 2 ms, which a probe of the disk has spent already

        return median(self._computing) + records * self._waited / max(sum(self.records), 1)


class Trial:
    """Whether something pays, by trying: tokens with it and without it, in turns, then the faster way for a while.

    What speculative reads cost differs by disk in ways that no figure of it tells: one gives its idle time for nothing,
    another counts every byte against a quota.
    """

    WARM_UP = 8  # tokens of a cold cache, which say nothing
    SPELL = 5  # tokens one way, then the other
    SPELLS = 6
    REST = 128  # tokens until the next trial; twice as many each time that nothing has changed
    MAX_REST = 1024

    def __init__(self) -> None:
        self.on = self._winner = True  # most guesses are right
        self._rest = self.REST
        self._left = self.WARM_UP  # tokens until the next trial begins
        self._ways = {True: _Way(), False: _Way()}

    def token(self, seconds: float, waited_sec: float = 0.0, records: int = 0) -> None:
        """One took this long, the way that `on` said, `waited_sec` of it for the `records` that it wanted and that
        weren't kept. Decides about the next."""
        if self._left > 0:
            self._left -= 1
            return
        self._ways[self.on].add(seconds, waited_sec, records)
        wanted = [way.records for way in self._ways.values()]
        done = sum(map(len, wanted))
        if done % self.SPELL == 0:
            self.on = not self.on
        if done == self.SPELL * self.SPELLS:
            mean = sum(map(sum, wanted)) / done
            self.on = self._ways[True].cost(mean) <= self._ways[False].cost(mean)
            self._rest = min(2 * self._rest, self.MAX_REST) if self.on == self._winner else self.REST
            self._winner, self._left = self.on, self._rest
            self._ways = {True: _Way(), False: _Way()}


class LookAhead:
    """For one token at a time, or the next ones of a few sequences, layer by layer: what the layer after this one will
    want. FINAL as a source is the state that goes into the head; it tells of the next token's first layer. A layer
    whose router reads what its attention gives is asked before that attention, too, with itself as the source: one
    attention nearer the truth than the guess of the layer before."""

    def __init__(
        self,
        num_layers: int,
        k: int,
        next_token: bool = False,
        certain: Collection[int] = (),
        own: Collection[int] = (),
    ) -> None:
        """k: experts per token; next_token: the final state can be asked; certain: layers without a router, of which
        all is wanted; own: those whose routers read what attention gives."""
        self._certain, self.own = frozenset(certain), frozenset(own)
        self._next_token, self._num_layers = next_token, num_layers
        layers = range(num_layers)
        # of a guess by another layer's state and of one by its own: [layer guessed for][rank]
        self._precision = {is_own: [[_HOPE] * k for _ in layers] for is_own in (False, True)}
        # layer guessed for -> rank, expert of guesses whose truth is still to come
        self._open: dict[bool, list[list[tuple[int, int]]]] = {is_own: [[] for _ in layers] for is_own in (False, True)}
        self._of_next: list[tuple[int, int]] = []  # the same of the next token's first layer
        self._nothing = np.full((2, num_layers), -1, np.int32)
        self._chosen = self._ahead = self._nothing
        self._asks_final = False
        self._tokens = 0
        self.trials = Trial(), Trial()  # for one token, and for several
        self.trial = self.trials[False]

    @property
    def ahead(self) -> npt.NDArray[np.int32]:
        """int32 [2, layers]: the layer that is guessed for with the state before each one's attention, and with the one
        after it; -1 for none."""
        return self._ahead

    def target(self, source: int) -> int | None:
        """The layer that is guessed for with the state after the attention of layer `source`, or with the final one."""
        if not self.trial.on:
            return None
        if source == FINAL:  # the trial has just been told of a token, and may have turned
            return 0 if self._asks_final else None
        chosen = int(self._ahead[1, source])
        return None if chosen < 0 else chosen

    def begin_token(self, several: bool = False) -> None:
        """Decide for one token, or one each of several sequences, what is worth asking. Several have a trial of their
        own: what a token of theirs takes is another time."""
        self.trial = self.trials[several]
        if self._tokens % _WATCH < 2:
            watch = self._tokens % _WATCH == 0
            self._chosen = self._nothing.copy()
            for target in range(self._num_layers):
                is_worth = watch or target in self._certain or max(self._precision[False][target]) >= WORTH
                if target == 0:
                    self._asks_final = self._next_token and is_worth
                elif is_worth:
                    self._chosen[1, target - 1] = target
                if target in self.own and (watch or max(self._precision[True][target]) >= WORTH):
                    self._chosen[0, target] = target
        self._tokens += 1
        self._ahead = self._chosen if self.trial.on else self._nothing
        for of_layers in self._open.values():
            for waiting in of_layers:  # of a token that was given up half-way
                waiting.clear()
        first = self._open[False]
        first[0], self._of_next = self._of_next, first[0]

    def likelihoods(self, source: int, target: int) -> list[float]:
        """How likely the guess ranked first, second ... for `target` is right; 0 where it isn't worth a read."""
        if target in self._certain:
            return [1.0] * len(self._precision[False][target])
        return [p if p >= WORTH else 0.0 for p in self._precision[source == target][target]]

    def precision(self, target: int, own: bool = False) -> list[float]:
        """The share of guesses that were right lately, by rank; own: of those by the layer's own state."""
        return list(self._precision[own][target])

    def record_prediction(self, source: int, target: int, guesses: Iterable[tuple[int, int]]) -> None:
        """These guesses (expert, rank) had to be read, and will tell how good such guesses are."""
        waiting = self._of_next if source == FINAL else self._open[source == target][target]
        waiting += [(rank, expert) for expert, rank in guesses]

    def score_predictions(self, layer: int, experts: Collection[int]) -> None:
        """The exact experts of `layer` are known."""
        for is_own, of_layers in self._open.items():
            precision = self._precision[is_own][layer]
            for rank, expert in of_layers[layer]:
                precision[rank] = _KEEP * precision[rank] + (1 - _KEEP) * (expert in experts)
            of_layers[layer].clear()
