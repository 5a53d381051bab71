"""A run on a clock of its own: the engine's forward pass, expert cache, policy and look-ahead over a simulated disk.

Owns what stands in for arithmetic: measured times, and routes that were recorded or drawn. So hits, wrong guesses, late
reads and the trial of the look-ahead are not estimated but happen. Pure: the same arguments give the same figures. A
test holds the counts against those of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from smallthinker.arithmetic import Floats, Span, Step
from smallthinker.cache.expert_cache import ExpertCache, allocate_slots
from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.policies import DEFAULT_POLICY
from smallthinker.cache.read_counters import CacheCounters
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.forward import Experts, ForwardPass, Stop
from smallthinker.host import DIRECT_ALIGN
from smallthinker.memory_plan import MemoryPlan, slots_at
from smallthinker.models.description import Model
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.disk_model import Clock, DiskModel, SimulatedQueue
from smallthinker.prediction.routing import Routing
from smallthinker.router.look_ahead import LookAhead
from smallthinker.spare_memory import FIRST_TOKENS, SpareMemory


@dataclass(frozen=True)
class SimulatedPhase:
    """What some steps took: seconds of the simulated clock, of that in arithmetic and in Python, the cache's counts of
    records, and what was read from the disk. Bytes in `experts` are not a real record's."""

    tokens: int
    sec: float
    compute_sec: float
    experts: CacheCounters
    records_read: int
    bytes_read: int

    @property
    def tok_per_sec(self) -> float:
        return self.tokens / self.sec if self.sec else 0.0

    @property
    def needed_records(self) -> int:
        """Read and wanted."""
        return self.experts.requests - self.experts.hits


class _Arithmetic:
    """Moves the clock on by what each kernel takes, and the work around it. The tokens of a step are places in the
    routing."""

    def __init__(self, config: Model, costs: ComputeCosts, routing: Routing, clock: Clock) -> None:
        self.config, self.costs, self.routing, self._clock = config, costs, routing, clock
        self.sec = 0.0  # in arithmetic and around it
        self.mixes_first, self.certain = frozenset(config.layers_that_mix_first), frozenset(config.certain_layers)
        self.used, self.first_of = config.used_of_layers, list(accumulate(config.experts_of_layers, initial=0))
        self.at: list[int] = []

    def spend(self, sec: float) -> None:
        self._clock.sec += sec
        self.sec += sec

    def begin(self, spans: Sequence[Span]) -> Step:
        self.at = list(chain.from_iterable(tokens for _, tokens in spans))
        return Step(spans, 0, self.used)

    def layers_of(self, step: Step, slot_table: npt.NDArray[np.int32]) -> _Layers:
        return _Layers(self, step, slot_table)

    def logits(self, step: Step, rows: npt.NDArray[np.intp] | None) -> Floats:
        self.spend(self.costs.head_sec)
        return np.empty((0, 0), np.float32)


class _Layers:
    """One step's; a `LayerArithmetic`."""

    def __init__(self, of: _Arithmetic, step: Step, slot_table: npt.NDArray[np.int32]) -> None:
        self._of, self._costs, self._slot_table = of, of.costs, slot_table
        self._tokens, self._start = step.tokens, step.starts[0]
        self._landing_sec = 0.0  # beside the kernels, each time that some of the layer's experts are there

    def run(self, first: int, last: int, ahead: npt.NDArray[np.int32]) -> Stop:
        costs, of = self._costs, self._of
        used: list[Experts] = []
        for layer in range(first, of.config.num_layers):
            mixes_first = layer in of.mixes_first
            if mixes_first:
                guess = self._missing_guess(layer, int(ahead[0, layer]))
                if guess is not None:
                    return Stop(layer, used, None, guess, False)
                self.mix(layer)
            if self._tokens == 1 and layer not in of.certain:
                of.spend(costs.route_sec)
            route = self._route(layer)
            is_missing = not self._are_there(layer, route[0])
            if is_missing or layer == last:
                of.spend(costs.miss_python_sec if is_missing else costs.hit_python_sec)
                self._landing_sec = costs.landed_python_sec if is_missing else 0.0
                return Stop(layer, used, route, None, mixes_first)
            if not mixes_first:
                self.mix(layer)
            used.append(route)
            self._landing_sec = costs.hit_python_sec
            guess = self._missing_guess(layer, int(ahead[1, layer]))
            if guess is not None:
                return Stop(layer, used, route, guess, True)
            self.compute(layer, len(route[0]), sum(map(len, route[1])))
        return Stop(of.config.num_layers, used, None, None, False)

    def mix(self, layer: int) -> None:
        costs, tokens, window = self._costs, self._tokens, self._of.config.layers[layer].attention.window
        seen = self._start + (tokens - 1) / 2
        seen = min(seen, window) if window else seen
        if tokens == 1:
            self._of.spend(costs.attend_sec + seen * costs.key_sec)
        else:
            self._of.spend(costs.chunk_attend_sec(tokens) + tokens * seen * costs.chunk_key_sec)

    def guess(self, source: int, target: int) -> tuple[list[int], list[int]]:
        of = self._of
        of.spend(self._costs.guess_sec)
        guesses, k = of.routing.guesses, of.used[target]
        if self._tokens == 1:
            experts = guesses[of.at[0], target, :k].tolist()
            return experts, list(range(len(experts)))
        named = guesses[of.at, target, :k].T.ravel()  # all tokens' best, then all second ones
        distinct, first = np.unique(named, return_index=True)
        order = np.argsort(first)
        return distinct[order].tolist(), (first[order] // self._tokens).tolist()

    def compute(self, layer: int, experts: int, pairs: int) -> None:
        costs = self._costs
        if self._tokens == 1:
            self._of.spend(costs.experts_sec(experts) + self._landing_sec)
        else:
            self._of.spend(costs.chunk_experts_sec(experts, pairs))

    def _route(self, layer: int) -> Experts:
        of = self._of
        flat = of.routing.ids[of.at, layer, : of.used[layer]].ravel().tolist()
        if self._tokens == 1:
            return flat, [[pair] for pair in range(len(flat))]
        pairs: dict[int, list[int]] = {expert: [] for expert in sorted(set(flat))}
        for pair, expert in enumerate(flat):
            pairs[expert].append(pair)
        return list(pairs), list(pairs.values())

    def _missing_guess(self, source: int, target: int) -> tuple[list[int], list[int]] | None:
        """The guess of layer `target`, -1 for none, if it isn't all in slots."""
        if target < 0:
            return None
        guess = self.guess(source, target)
        return None if self._are_there(target, guess[0]) else guess

    def _are_there(self, layer: int, experts: list[int]) -> bool:
        first = self._of.first_of[layer]
        return all(self._slot_table[first + expert] >= 0 for expert in experts)


class SimulatedEngine:
    """One model with an empty cache; `prefill` and `decode` return what they took, and leave it as they left it."""

    def __init__(
        self,
        config: Model,
        plan: MemoryPlan,
        *,
        kv: KvKind,
        record_bytes: int,
        stored_bytes: int,
        disk: DiskModel,
        costs: ComputeCosts,
        routing: Routing,
        look_ahead: bool = True,
    ) -> None:
        """plan: made with record_bytes; stored_bytes: what the disk has of a record, less where it is compressed."""
        self._config, self._plan, self._record_bytes = config, plan, record_bytes
        self._shape = SequenceShape.of(config, plan.context, plan.chunk, kv)
        self._routing, self._stored_bytes = routing, stored_bytes
        layers, k = config.num_layers, config.experts_per_token
        self._clock = clock = Clock()
        finish_sec = costs.decompress_sec if stored_bytes < record_bytes else 0.0
        self._queue = queue = SimulatedQueue(disk, clock, stored_bytes, finish_sec)
        self._spare = SpareMemory(plan.budget_bytes, record_bytes, plan.most_slots, config.num_records).usual
        slots = allocate_slots(plan.most_slots + self._spare, DIRECT_ALIGN)  # never touched
        policy = DEFAULT_POLICY(config.experts_of_layers, config.used_of_layers)
        self._cache = ExpertCache(slots, queue, policy, config.experts_of_layers, clock=lambda: clock.sec)
        self._arithmetic = _Arithmetic(config, costs, routing, clock)
        is_whole = plan.most_slots == config.num_records
        certain, own = config.certain_layers, config.layers_that_mix_first
        look = None if is_whole or not look_ahead else LookAhead(layers, k, certain=certain, own=own)
        self._forward = ForwardPass(self._arithmetic, self._cache, layers, look_ahead=look, clock=lambda: clock.sec)
        self._context = SequenceState(SequenceShape(()))  # without memory: nothing is kept but the length
        self._at = self._decoded = 0  # in the routing; tokens
        self._shared = (-1, 0, False)
        self._cache.resize(plan.most_slots)

    def forget(self) -> None:
        """Empty the context, as before another prompt."""
        self._context.rewind(0)

    def prefill(self, tokens: int) -> SimulatedPhase:
        began = self._reading()
        for start in range(0, tokens, self._plan.chunk):
            self._step(min(self._plan.chunk, tokens - start))
        return self._phase(began, tokens)

    def decode(self, tokens: int) -> SimulatedPhase:
        began = self._reading()
        for _ in range(tokens):
            self._step(1)
            self._decoded += 1
        return self._phase(began, tokens)

    def _step(self, tokens: int) -> None:
        self._share_memory(tokens)
        if self._at + tokens > self._routing.tokens:  # it begins again at its end
            self._at = 0
        self._at += tokens
        self._forward.step([(self._context, range(self._at - tokens, self._at))])

    def _reading(self) -> tuple[float, float, CacheCounters, int]:
        return self._clock.sec, self._arithmetic.sec, self._cache.counters(), self._queue.withdrawn_bytes

    def _phase(self, began: tuple[float, float, CacheCounters, int], tokens: int) -> SimulatedPhase:
        sec, compute, counters, withdrawn = self._reading()
        counters -= began[2]
        records = counters.bytes_read // DIRECT_ALIGN
        nbytes = records * self._stored_bytes + withdrawn - began[3]
        return SimulatedPhase(tokens, sec - began[0], compute - began[1], counters, records, nbytes)

    def _share_memory(self, tokens: int) -> None:
        """As Engine does before each step."""
        positions, lends = self._context.length + tokens, self._decoded >= FIRST_TOKENS
        if self._plan.most_slots > self._plan.slots and (positions // 16, tokens, lends) != self._shared:
            self._shared = positions // 16, tokens, lends
            plan = self._plan
            kv_bytes = self._shape.touched_bytes(positions + 16)
            limit = slots_at(plan, self._config, self._record_bytes, kv_bytes, tokens)
            self._cache.resize(min(limit, plan.most_slots) + (self._spare if lends else 0))
