"""One step's way through the layers: the only file that knows their order.

What a layer needs and memory lacks is asked for as soon as its router can say, before attention or after it, and used
as it lands; what is only guessed is read meanwhile. The arithmetic is handed in (`Arithmetic`, or a clock that only
counts its time), as are the experts' cache and the guesses. Knows nothing about text, sampling, memory budgets or what
one layer computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from smallthinker.arithmetic import MANY_TOKENS, Floats, Route, Span, Step, Stop
from smallthinker.cache.expert_cache import MAX_UNDER_WAY, ExpertCache
from smallthinker.cache.read_counters import CacheCounters
from smallthinker.errors import CancelledError
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.predictor import FINAL

_TOKENS_A_CALL = 64  # times layers: how long cancelling may take


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


S = TypeVar("S", bound=Step)


class StepArithmetic(Protocol[S]):
    """See `Arithmetic`."""

    def begin(self, spans: Sequence[Span]) -> S: ...

    def run(
        self, step: S, first: int, last: int, slot_table: npt.NDArray[np.int32], ahead: npt.NDArray[np.int32]
    ) -> Stop: ...

    def mix(self, step: S, layer: int) -> None: ...

    def guess(self, step: S, source: int, target: int) -> tuple[list[int], list[int]]: ...

    def compute(self, step: S, layer: int, pairs: list[list[int]], slots: list[int]) -> None: ...

    def share(self, step: S, layer: int) -> None: ...

    def combine(self, step: S, layer: int) -> None: ...

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
        self._num_layers, self._prefetch, self._clock = num_layers, prefetch, clock
        self._nothing_ahead = np.full((2, num_layers), -1, np.int32)
        # of a step that is held: its tokens, and of each layer (pair, expert)
        self._held_tokens, self._routes = 0, list[tuple[int, list[tuple[int, int]]]]()
        self.observe(Observers())

    def observe(self, observers: Observers) -> None:
        """Show these what is computed from now on."""
        self._is_watched = any((observers.routed, observers.attended, observers.entered))
        self._routed = observers.routed or ignore
        self._attended = observers.attended or ignore
        self._final = observers.final or ignore
        self._entered = observers.entered or ignore

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
            self._routes.clear()
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
        self._held_tokens = step.tokens if held else 0
        look = self.look_ahead if step.tokens < MANY_TOKENS else None
        before = None if look is None or held else self.experts.counters()
        if look is not None:
            look.begin_token(several=step.tokens > 1)
        layer, asked = 0, -1  # asked: whose own experts have been guessed
        while layer < self._num_layers:
            if cancelled():
                raise CancelledError("cancelled")
            on_layer(layer)
            stop = self._run(layer, step, asked)
            layer = stop.layer + 1
            if stop.route is None and stop.guess is not None:  # the rest of the layer is still to come
                self._guess_and_read(stop.layer, stop.layer, step, stop.guess)
                layer = asked = stop.layer
            elif stop.route is not None and stop.guess is not None:
                self._go_on(stop.layer, stop.route, stop.guess, step)
            elif stop.route is not None:
                self._serve(stop.layer, stop.route, step, is_mixed=stop.is_mixed)
        for state, n in zip(step.sequences, step.counts, strict=True):
            state.advance(n)
        if not held:
            self.experts.step(step.tokens)
        if look is not None and before is not None:
            each, waited = 1 / step.tokens, self.experts.stall_sec - waited
            took = self._clock() - began
            look.trial.token(took * each, waited * each, self.experts.wanted - wanted)
            self._count_waste(look, took, before)
            if step.tokens == 1:
                self._guess_next(FINAL, step)
        self._final(step.x)
        every = all_logits or step.tokens == len(step.counts)
        return self.arithmetic.logits(step, None if every else np.cumsum(step.counts) - 1)

    def _count_waste(self, look: LookAhead, seconds: float, before: CacheCounters) -> None:
        all_of_them = self.experts.counters()
        if all_of_them.busy_sec:
            read = all_of_them - before
            speed = all_of_them.bytes_read / all_of_them.busy_sec
            look.idle.token(seconds, speed, read.certain_bytes + read.useful_bytes, read.wasted_bytes)

    def _run(self, layer: int, step: Step, asked: int) -> Stop:
        """The layers from this one on, as far as everything that they need is in memory."""
        cache, look, ahead = self.experts, self.look_ahead, self._nothing_ahead
        last = min(cache.layers_in_table(layer, self._num_layers), layer + max(1, _TOKENS_A_CALL // step.tokens))
        if look is not None and step.tokens >= MANY_TOKENS:
            last = layer
            if layer in look.own:
                self._read_most(layer, layer, step)
        elif look is not None:
            ahead = look.ahead
            if layer == asked:
                ahead = ahead.copy()
                ahead[0, layer] = -1
        if self._is_watched:
            last = layer
            self._entered(layer, step.x)
        stop = self.arithmetic.run(step, layer, last, cache.slot_table, ahead)
        cache.used_from_table(layer, stop.used, step.tokens)
        if self._held_tokens:
            for number, (experts, counts, pairs) in enumerate(stop.used, layer):
                owners = np.repeat(experts, counts).tolist()
                self._routes.append((number, list(zip(pairs, owners, strict=True))))
        return stop

    def _go_on(self, layer: int, route: Route, guess: tuple[list[int], list[int]], step: Step) -> None:
        """Attention has been added, the layer's experts are in memory, those guessed of the next layer are not."""
        first = self.experts.slot_table[self.experts.first_record(layer) :]
        slots = first[route.experts].tolist()
        self._guess_next(layer, step, guess)
        self._compute(layer, route.pairs, slots, step)

    def _serve(self, layer: int, route: Route, step: Step, is_mixed: bool) -> None:
        """One layer that may miss something; nothing of it has been computed but, if is_mixed, attention."""
        cache, look = self.experts, self.look_ahead
        if look is None:
            self._serve_route(layer, route, step, is_mixed)
            return
        waited, wanted = cache.stall_sec, cache.wanted
        look.score_predictions(layer, route.experts)
        self._serve_route(layer, route, step, is_mixed)
        if step.tokens < MANY_TOKENS and not self._held_tokens:
            look.trial.layer(layer, cache.stall_sec - waited, cache.wanted - wanted)

    def _serve_route(self, layer: int, route: Route, step: Step, is_mixed: bool) -> None:
        cache, arithmetic = self.experts, self.arithmetic
        if is_mixed:
            self._attended(layer, step.x)
        self._routed(layer, step.normed if is_mixed else step.x, route)
        if self._held_tokens:
            of_expert = zip(route.experts, route.pairs, strict=True)
            self._routes.append((layer, [(pair, expert) for expert, pairs in of_expert for pair in pairs]))
        counts = list(map(len, route.pairs))
        slots = cache.resident_slots(layer, route.experts, counts, step.tokens)
        if slots is not None:  # nothing to read
            if not is_mixed:
                self._mix(layer, step)
            self._guess_next(layer, step)
            self._compute(layer, route.pairs, slots, step)
            return
        if not (self._prefetch or is_mixed):
            self._mix(layer, step)
            is_mixed = True
        with cache.request(layer, route.experts, counts, step.tokens) as request:  # misses go to the disk now
            if not is_mixed:
                self._guess_next(layer, step)  # for when it is through with those before attention is
                self._mix(layer, step)  # arithmetic while the disk works
            self._guess_next(layer, step)
            arithmetic.share(step, layer)
            for landed in request:
                pairs = [route.pairs[position] for position, _ in landed]
                arithmetic.compute(step, layer, pairs, [slot for _, slot in landed])
        arithmetic.combine(step, layer)  # in the router's order, whichever landed first

    def _compute(self, layer: int, pairs: list[list[int]], slots: list[int], step: Step) -> None:
        """The layer's network, with all of its experts in memory."""
        self.arithmetic.compute(step, layer, pairs, slots)
        self.arithmetic.share(step, layer)
        self.arithmetic.combine(step, layer)

    def _mix(self, layer: int, step: Step) -> None:
        self.arithmetic.mix(step, layer)
        self._attended(layer, step.x)

    def _guess_next(self, source: int, step: Step, guess: tuple[list[int], list[int]] | None = None) -> None:
        """Have what the next layer will likely want read in the disk's idle time. source: the layer that the states are
        within, or FINAL; after its attention most guesses are right. guess: where it has been made already."""
        look = self.look_ahead
        if look is None:
            return
        if step.tokens >= MANY_TOKENS:
            if source + 1 < self._num_layers:
                self._read_most(source, source + 1, step)
            return
        target = look.target(source)
        if target is not None:
            self._guess_and_read(source, target, step, guess)

    def _guess_and_read(
        self, source: int, target: int, step: Step, guess: tuple[list[int], list[int]] | None = None
    ) -> None:
        """The same for layer `target`, which may be `source` itself: before its attention, where its router reads what
        comes of that."""
        look = self.look_ahead
        assert look is not None
        experts, ranks = guess or self.arithmetic.guess(step, source, target)
        of_rank = look.likelihoods(source, target)
        likelihoods = [of_rank[rank] for rank in ranks]
        missing = self.experts.prefetch(target, experts, likelihoods, min(step.tokens, 2) * MAX_UNDER_WAY)
        if missing:
            look.record_prediction(source, target, [(experts[place], ranks[place]) for place in missing])

    def _read_most(self, source: int, target: int, step: Step) -> None:
        """Many tokens want most of a layer's experts: all that a token names, the best-ranked first."""
        experts, _ = self.arithmetic.guess(step, source, target)
        self.experts.prefetch(target, experts, [1.0] * len(experts), max_under_way=len(self.experts.slots))
