"""Look-ahead: which experts the next layer will likely want, guessed from the state within an earlier one.

The residual stream changes little from layer to layer, so the router of a later layer, asked early, is often right, and
what a store's predictor has learned more often. Best once attention has been added: then only the experts of one layer
are still to come. With a predictor, the first layer is guessed from the final state of the token before, too. How often
is measured as the exact routes become known, for every layer and rank, over those guesses that meant a read: experts
that are resident are guessed more easily. Nothing is read for a guess before one like it was right; one that is too
seldom right is no longer made, only watched now and then. One layer ahead: guesses two and three layers ahead read
three to five times as much for nothing. Knows nothing about slots or files: whoever gets the guesses decides what to
read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from smallthinker._kernels import GuessRecord
from smallthinker.router.predictor import FINAL
from smallthinker.router.trial import IdleShare, Trial

# A wrong guess costs the certain reads at most the chunk that is under way; a right one saves a part of a wait.
WORTH = 0.5
_WATCH = 16  # a guess that isn't worth making is made for the record, without a read, every so many tokens
_KEEP = 0.95  # of the running precision, at each guess once there were some
_HOPE = 0.45  # a precision to begin with: below WORTH, so that the first guesses are made and judged without a read
_LEARN = 16  # tokens to begin with whose guesses are all made


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
        self.record = GuessRecord(num_layers, k, self._certain, hope=_HOPE, keep=_KEEP, worth=WORTH)
        self._nothing = np.full((2, num_layers), -1, np.int32)
        self._chosen = self._ahead = self._nothing
        self._asks_final = False
        self._tokens = 0
        self.trials = Trial(), Trial()  # for one token, and for several
        self.trial = self.trials[False]
        self.idle = IdleShare()

    @property
    def _is_on(self) -> bool:
        return self.trial.on and self.idle.is_left

    @property
    def ahead(self) -> npt.NDArray[np.int32]:
        """int32 [2, layers]: the layer that is guessed for with the state before each one's attention, and with the one
        after it; -1 for none."""
        return self._ahead

    def target(self, source: int) -> int | None:
        """The layer that is guessed for with the state after the attention of layer `source`, or with the final one."""
        if not self._is_on:
            return None
        if source == FINAL:  # the trial has just been told of a token, and may have turned
            return 0 if self._asks_final and 0 not in self.trial.losing else None
        chosen = int(self._ahead[1, source])
        return None if chosen < 0 else chosen

    def begin_token(self, several: bool = False) -> None:
        """Decide for one token, or one each of several sequences, what is worth asking. Several have a trial of their
        own: what a token of theirs takes is another time."""
        self.trial = self.trials[several]
        if self._tokens % _WATCH < 2 or self._tokens < _LEARN:
            watch = self._tokens % _WATCH == 0 or self._tokens < _LEARN
            self._chosen = self._nothing.copy()
            for target in range(self._num_layers):
                is_worth = watch or target in self._certain or self.record.may_be_right(target, own=False)
                if target == 0:
                    self._asks_final = self._next_token and is_worth
                elif is_worth:
                    self._chosen[1, target - 1] = target
                if target in self.own and (watch or self.record.may_be_right(target, own=True)):
                    self._chosen[0, target] = target
        self._tokens += 1
        self._ahead = self._chosen if self._is_on else self._nothing
        if self.trial.losing and self._is_on:
            self._ahead = np.where(np.isin(self._chosen, list(self.trial.losing)), -1, self._chosen)
        self.record.begin_token()

    def likelihoods(self, source: int, target: int) -> list[float]:
        """How likely the guess ranked first, second ... for `target` is right; 0 where it isn't worth a read."""
        return self.record.likelihoods(source, target)

    def precision(self, target: int, own: bool = False) -> list[float]:
        """The share of guesses that were right lately, by rank; own: of those by the layer's own state."""
        return self.record.precision(target, own)

    def record_prediction(self, source: int, target: int, guesses: Iterable[tuple[int, int]]) -> None:
        """These guesses (expert, rank) had to be read, and will tell how good such guesses are."""
        experts, ranks = [*zip(*guesses, strict=True)] or ((), ())
        self.record.predict(source, target, experts, ranks)

    def score_predictions(self, layer: int, experts: Collection[int]) -> None:
        """The exact experts of `layer` are known."""
        self.record.score(layer, list(experts))
