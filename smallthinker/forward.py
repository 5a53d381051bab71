"""One step of a model: what comes before its layers, and what they have told once they are through.

Hands the layers what they ask (kernels/layers/layers.cpp, the only file that knows their order): the arithmetic
(`Arithmetic`, or a clock that only counts its time), the experts' cache, the guesses. Knows nothing about text,
sampling, memory budgets or what one layer computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.arithmetic import MANY_TOKENS, Floats, Route, Span, Step
from smallthinker.cache.expert_cache import MAX_UNDER_WAY, ExpertCache
from smallthinker.cache.read_counters import CacheCounters
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.predictor import FINAL


def never() -> bool:
    return False


def ignore(*_: object) -> None:
    pass


class Observers(NamedTuple):
    """What is shown while a step is computed. x is its own memory, to be copied if kept and never written to.

    entered sees x before anything of a layer is computed, more than once where the layer is begun again; routed, what
    each layer's experts would read [T, d] and the route before any expert is computed; attended, x once the layer's
    attention has been added, which is earlier where the router reads what comes of it; final, what goes into the head's
    norm.
    """

    routed: Callable[[int, Floats, Route], None] | None = None
    attended: Callable[[int, Floats], None] | None = None
    final: Callable[[Floats], None] | None = None
    entered: Callable[[int, Floats], None] | None = None

    @property
    def of_layers(self) -> bool:
        return any((self.routed, self.attended, self.entered))


class _Watcher:
    """Shows observers one step."""

    def __init__(self, observers: Observers, step: Step) -> None:
        self._observers, self._step = observers, step

    def entered(self, layer: int) -> None:
        if self._observers.entered is not None:
            self._observers.entered(layer, self._step.x)

    def attended(self, layer: int) -> None:
        if self._observers.attended is not None:
            self._observers.attended(layer, self._step.x)

    def routed(self, layer: int, is_mixed: bool, experts: list[int], pairs: list[list[int]]) -> None:
        if self._observers.routed is not None:
            read = self._step.normed if is_mixed else self._step.x
            self._observers.routed(layer, read, Route(*self._step.chosen(layer), experts, pairs))


Experts = tuple[list[int], list[list[int]]]
"""Distinct experts of a layer, and the pairs of each, token * k + rank."""


class Stop(NamedTuple):
    """Where `LayerArithmetic.run` ended. `used`: of every layer that found its experts in slots. `route`: of a layer
    that didn't; nothing of it is computed, but for attention where the router reads what comes of that. `guess`:
    experts and ranks that are not all in slots: of a later layer, with the route of a layer whose attention has been
    added; of the layer itself, without a route, before its attention. `is_mixed`: attention has been added."""

    layer: int
    used: list[Experts]
    route: Experts | None
    guess: tuple[list[int], list[int]] | None
    is_mixed: bool


class LayerArithmetic(Protocol):
    """One step's, in Python. See kernels/step_arithmetic.h; what every token uses and sums aren't asked of it."""

    def run(self, first: int, last: int, ahead: npt.NDArray[np.int32]) -> Stop: ...

    def mix(self, layer: int) -> None: ...

    def guess(self, source: int, target: int) -> tuple[list[int], list[int]]: ...

    def compute(self, layer: int, experts: int, pairs: int) -> None: ...


S = TypeVar("S", bound=Step)


class StepArithmetic(Protocol[S]):
    """See `Arithmetic`."""

    def begin(self, spans: Sequence[Span]) -> S: ...

    def layers_of(self, step: S, slot_table: npt.NDArray[np.int32]) -> _kernels.Step | LayerArithmetic: ...

    def logits(self, step: S, rows: npt.NDArray[np.intp] | None) -> Floats: ...


class ForwardPass:
    """A model's layers over sequences' states that it is handed and one expert cache.

    `prefetch=False` asks for experts only after attention, `look_ahead=None` guesses none of later layers: for
    measuring what asking early is worth. clock: seconds, as `time.perf_counter`.
    """

    def __init__(
        self,
        arithmetic: StepArithmetic[Any],
        experts: ExpertCache,
        num_layers: int,
        *,
        look_ahead: LookAhead | None = None,
        prefetch: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.arithmetic, self.experts, self.look_ahead = arithmetic, experts, look_ahead
        self._clock = clock
        self._layers = _kernels.Layers(
            experts.books,
            num_layers,
            len(experts.slots),
            own=frozenset() if look_ahead is None else look_ahead.own,
            asks_early=prefetch,
            many_tokens=MANY_TOKENS,
            max_under_way=MAX_UNDER_WAY,
        )
        self._nothing_ahead = np.full((2, num_layers), -1, np.int32)
        # of a step that is held: its tokens, and of each layer (pair, expert)
        self._held_tokens, self._routes = 0, list[tuple[int, list[tuple[int, int]]]]()
        self._observers = Observers()

    @property
    def guess_sec(self) -> float:
        """What guesses have taken so far, by the system's clock."""
        return self._layers.guess_sec

    def observe(self, observers: Observers) -> None:
        """Show these what is computed from now on."""
        self._observers = observers

    def step(
        self,
        spans: Sequence[Span],
        *,
        all_logits: bool = False,
        held: bool = False,
        cancelled: Callable[[], bool] = never,
        on_layer: Callable[[int], None] = ignore,
    ) -> Floats:
        """Run T tokens: those of each span after the ones in its state, which is another for each span.

        A span has at most the tokens of the planned chunk. Returns logits [spans, V] of each one's last token, or
        [T, V] with `all_logits`; no span's depend on what else is computed. held: what learns from the tokens hears of
        them in `keep`, which must follow, since some may be wrong; fewer than MANY_TOKENS. on_layer is told how many
        layers are done, now and then. Raises CancelledError between two layers when `cancelled()` turns true (the
        states then hold what they held before), StoreReadError when experts can't be read.
        """
        if held:
            self.experts.hold()
        try:
            return self._step(spans, all_logits, held, cancelled, on_layer)
        except BaseException:
            if held:
                self.experts.settle([])
            raise

    def keep(self, tokens: int) -> None:
        """Of the step that was `held`, the first tokens were right."""
        of_token: list[list[tuple[int, list[int]]]] = [[] for _ in range(tokens)]
        for layer, chosen in self._routes:
            k = len(chosen) // self._held_tokens
            for pair, expert in sorted(chosen)[: tokens * k]:
                if pair % k == 0:
                    of_token[pair // k].append((layer, []))
                of_token[pair // k][-1][1].append(expert)
        self._routes.clear()
        self.experts.settle(of_token)

    def _step(
        self,
        spans: Sequence[Span],
        all_logits: bool,
        held: bool,
        cancelled: Callable[[], bool],
        on_layer: Callable[[int], None],
    ) -> Floats:
        began, waited, wanted = self._clock(), self.experts.stall_sec, self.experts.wanted
        step = self.arithmetic.begin(spans)
        look = self.look_ahead if step.tokens < MANY_TOKENS else None
        before = None if look is None or held else self.experts.counters()
        if look is not None:
            look.begin_token(several=step.tokens > 1)
        layers = self.arithmetic.layers_of(step, self.experts.slot_table)
        guesses = self.look_ahead
        routes, waits = self._layers.run(
            layers,
            step.tokens,
            None if guesses is None else guesses.record,
            self._nothing_ahead if look is None else look.ahead,
            held=held,
            cancelled=None if cancelled is never else cancelled,
            on_layer=None if on_layer is ignore else on_layer,
            watcher=_Watcher(self._observers, step) if self._observers.of_layers else None,
        )
        if held:
            self._held_tokens, self._routes = step.tokens, routes
        for state, n in zip(step.sequences, step.counts, strict=True):
            state.advance(n)
        if not held:
            self.experts.step(step.tokens)
        if look is not None and before is not None:
            for wait in waits:
                look.trial.layer(*wait)
            each, waited = 1 / step.tokens, self.experts.stall_sec - waited
            took = self._clock() - began
            look.trial.token(took * each, waited * each, self.experts.wanted - wanted)
            self._count_waste(look, took, before)
            target = look.target(FINAL) if step.tokens == 1 else None
            if target is not None:
                self._layers.guess(layers, look.record, FINAL, target)
        if self._observers.final is not None:
            self._observers.final(step.x)
        every = all_logits or step.tokens == len(step.counts)
        return self.arithmetic.logits(step, None if every else np.cumsum(step.counts) - 1)

    def _count_waste(self, look: LookAhead, seconds: float, before: CacheCounters) -> None:
        all_of_them = self.experts.counters()
        if all_of_them.busy_sec:
            read = all_of_them - before
            speed = all_of_them.bytes_read / all_of_them.busy_sec
            look.idle.token(seconds, speed, read.certain_bytes + read.useful_bytes, read.wasted_bytes)
