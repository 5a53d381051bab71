"""The order of a step's work (smallthinker/native/), for `forward.ForwardPass`."""

from collections.abc import Callable, Sequence, Set
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallthinker._cache import Books

class Watcher(Protocol):
    """What it is shown lies in the step's own arrays. is_mixed: the layer's attention has been added by then."""

    def entered(self, layer: int) -> None: ...
    def routed(self, layer: int, is_mixed: bool, experts: list[int], pairs: list[list[int]]) -> None: ...
    def attended(self, layer: int) -> None: ...

class GuessRecord:
    """See native/guess_record.h; `LookAhead.record`. A source of -1 is the final state."""

    def __init__(self, layers: int, k: int, certain: Set[int], *, hope: float, keep: float, worth: float) -> None: ...
    def begin_token(self) -> None: ...
    def likelihoods(self, source: int, target: int) -> list[float]: ...
    def precision(self, target: int, own: bool) -> list[float]: ...
    def may_be_right(self, target: int, own: bool) -> bool: ...
    def predict(self, source: int, target: int, experts: Sequence[int], ranks: Sequence[int]) -> None:
        """These had to be read."""

    def score(self, layer: int, experts: Sequence[int]) -> None:
        """The exact ones."""

class Layers:
    guess_sec: float
    """What guesses have taken so far, by the system's clock."""

    def __init__(
        self,
        books: Books,
        layers: int,
        slots: int,
        *,
        own: Set[int],
        asks_early: bool,
        many_tokens: int,
        max_under_way: int,
    ) -> None:
        """own: layers whose routers read what attention gives; asks_early: of the other layers, for experts before
        attention; many_tokens: of a step, from which most of what its layers' routers name is wanted; max_under_way:
        guessed records of one token."""

    def run(
        self,
        arithmetic: object,
        tokens: int,
        guesses: GuessRecord | None,
        ahead: npt.NDArray[np.int32],
        *,
        held: bool,
        cancelled: Callable[[], bool] | None,
        on_layer: Callable[[int], None] | None,
        watcher: Watcher | None,
    ) -> tuple[list[tuple[int, list[tuple[int, int]]]], list[tuple[int, float, int]]]:
        """All layers of a step. arithmetic: as `StepArithmetic.lend` gives it; ahead: as `LookAhead.ahead`. Returns
        what a step that is held has used: layers, and of each (token * k + rank, expert); and, where there are guesses,
        for `Trial.layer` what layers waited: each one's number, seconds, records that weren't kept. Raises
        CancelledError, StoreReadError, ForkedError, and
        whatever those raise that it asks."""

    def guess(self, arithmetic: object, guesses: GuessRecord, source: int, target: int) -> None:
        """Have what layer `target` will likely want read in the disk's idle time; the states of the step are those
        within layer `source`, or FINAL ones."""
