"""Look-ahead: which experts later layers will likely want, guessed from the state within an earlier one.

The residual stream changes little from layer to layer, so the router of a later layer, asked early, is often right, and
what a store's predictor has learned more often. Best once attention has been added: then only the experts of one layer
are still to come. With a predictor, the first layers are guessed from the final state of the
token before: that state counts as a layer -1. How often is measured as the exact routes become known, for every
layer, distance and rank, over those guesses that meant a read: experts that are resident are guessed more easily. A
guess that is too seldom right is no longer made, only watched now and then. Knows nothing about slots or files:
whoever gets the guesses decides what to read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

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
    MOST_REST = 1024

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
            self._rest = min(2 * self._rest, self.MOST_REST) if self.on == self._winner else self.REST
            self._winner, self._left = self.on, self._rest
            self._ways = {True: _Way(), False: _Way()}


class LookAhead:
    """For one token at a time, or the next ones of a few sequences, layer by layer. `distances`: how many layers ahead,
    nearest first."""

    def __init__(self, num_layers: int, k: int, distances: Sequence[int], next_token: bool = False) -> None:
        """k: experts per token; next_token: layer -1 can be asked. Raises ValueError for a distance below 1."""
        if min(distances) < 1:
            raise ValueError(f"distances: expected 1 or more, found {min(distances)}")
        self._num_layers, self._distances = num_layers, tuple(distances)
        # [layer guessed for][distance][rank]
        self._precision = [{d: [_HOPE] * k for d in distances} for _ in range(num_layers)]
        # layer guessed for -> precision to be updated, rank, expert
        self._open: list[list[tuple[list[float], int, int]]] = [[] for _ in range(num_layers)]
        self._of_next: list[list[tuple[list[float], int, int]]] = [[] for _ in range(num_layers)]  # the next token's
        self._sources = range(-1 if next_token else 0, num_layers)
        self._nothing: dict[int, tuple[int, ...]] = dict.fromkeys(range(-1, num_layers), ())
        self._chosen = self._targets = self._nothing
        self._next_layers = self._nothing, np.full(num_layers, -1, np.int32)
        self._tokens = 0
        self.trials = Trial(), Trial()  # for one token, and for several
        self.trial = self.trials[False]

    def targets(self, source: int) -> tuple[int, ...]:
        """The layers to be asked for with the state within layer `source`; with the final one, -1, those of the next
        token."""
        if source < 0:  # the trial has just been told of a token, and may have turned
            return self._chosen[source] if self.trial.on else ()
        return self._targets[source]

    def next_layers(self) -> npt.NDArray[np.int32]:
        """int32 [layers], in place of `targets` for who looks one layer ahead: the next layer where it is asked for, -1
        where nothing is, -2 where it's something else."""
        if self._next_layers[0] is not self._targets:
            ahead = [self._targets[layer] for layer in range(self._num_layers)]
            found = [-1 if not of else layer + 1 if of == (layer + 1,) else -2 for layer, of in enumerate(ahead)]
            self._next_layers = self._targets, np.array(found, np.int32)
        return self._next_layers[1]

    def begin_token(self, several: bool = False) -> None:
        """Decide for one token, or one each of several sequences, what is worth asking. Several have a trial of their
        own: what a token of theirs takes is another time."""
        self.trial = self.trials[several]
        if self._tokens % _WATCH < 2:
            watch = self._tokens % _WATCH == 0
            self._chosen = self._nothing | {layer: self._worth_asking(layer, watch) for layer in self._sources}
        self._tokens += 1
        self._targets = self._chosen if self.trial.on else self._nothing
        for waiting in self._open:  # of a token that was given up half-way
            waiting.clear()
        self._open, self._of_next = self._of_next, self._open

    def _worth_asking(self, layer: int, watch: bool) -> tuple[int, ...]:
        later = [(layer + d, d) for d in self._distances if layer + d < self._num_layers]
        return tuple(target for target, d in later if watch or max(self._precision[target][d]) >= WORTH)

    def likelihoods(self, layer: int, target: int) -> list[float]:
        """How likely the guess ranked first, second ... for `target` is right; 0 where it isn't worth a read."""
        return [p if p >= WORTH else 0.0 for p in self.precision_of(layer, target)]

    def precision_of(self, layer: int, target: int) -> list[float]:
        """The share of guesses that were right lately, by rank."""
        return list(self._precision[target][target - layer])

    def remember(self, layer: int, target: int, guesses: Iterable[tuple[int, int]]) -> None:
        """These guesses (expert, rank) had to be read, and will tell how good such guesses are."""
        precision = self._precision[target][target - layer]
        waiting = self._of_next if layer < 0 else self._open
        waiting[target] += [(precision, rank, expert) for expert, rank in guesses]

    def judge(self, layer: int, experts: Collection[int]) -> None:
        """The exact experts of `layer` are known."""
        if self._open[layer]:
            for precision, rank, expert in self._open[layer]:
                precision[rank] = _KEEP * precision[rank] + (1 - _KEEP) * (expert in experts)
            self._open[layer].clear()

    def precision(self) -> dict[int, float]:
        """Share of the guesses that were right lately, by distance, over all layers and ranks; 0 is the next token's
        layers, at any distance."""
        found: dict[int, float] = {}
        for distance in self._distances:
            values = [p for by_distance in self._precision[distance:] for p in by_distance[distance]]
            found[distance] = sum(values) / len(values) if values else 0.0
        values = [p for d in self._distances if d <= self._num_layers for p in self._precision[d - 1][d]]
        return found | ({0: sum(values) / len(values)} if self._sources[0] < 0 and values else {})
