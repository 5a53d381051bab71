"""A run on a clock of its own: the engine's expert cache, policy and look-ahead over a simulated disk.

Owns the order of events of one layer, which is `layers.Decoder`'s with every kernel replaced by its measured time, but
for the guesses that a layer makes before its attention, where it misses something, and again after it. So
hits, wrong guesses, late reads and the trial of the look-ahead are not estimated but happen. Pure: the same
arguments give the same figures. A test holds the counts against those of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from smallthinker.cache.expert_cache import ExpertCache, allocate_slots
from smallthinker.cache.kv_cache import KvKind, kv_touched_bytes
from smallthinker.cache.policies import DEFAULT_POLICY
from smallthinker.cache.read_counters import CacheCounters
from smallthinker.config import ModelConfig
from smallthinker.expert_store.host import DIRECT_ALIGN
from smallthinker.layers import LOOK_AHEAD
from smallthinker.memory_plan import MemoryPlan, slots_at
from smallthinker.prediction.compute_costs import ComputeCosts
from smallthinker.prediction.disk_model import Clock, DiskModel, SimulatedQueue
from smallthinker.prediction.routing import Routing
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.planner import group_by_expert, plan_reads


@dataclass(frozen=True)
class Phase:
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


class SimulatedEngine:
    """One model with an empty cache; `prefill` and `decode` return what they took, and leave it as they left it."""

    def __init__(
        self,
        config: ModelConfig,
        plan: MemoryPlan,
        *,
        kv: KvKind,
        record_bytes: int,
        stored_bytes: int,
        disk: DiskModel,
        costs: ComputeCosts,
        routing: Routing,
    ) -> None:
        """plan: made with record_bytes; stored_bytes: what the disk has of a record, less where it is compressed."""
        self._config, self._plan, self._kv, self._record_bytes = config, plan, kv, record_bytes
        self._costs, self._routing = costs, routing
        layers, experts = config.num_hidden_layers, config.moe_num_primary_experts
        k = config.moe_num_active_primary_experts
        self.clock = Clock()
        self._compute_sec = 0.0
        finish_sec = costs.decompress_sec if stored_bytes < record_bytes else 0.0
        self._queue = queue = SimulatedQueue(disk, self.clock, stored_bytes, finish_sec)
        self._stored_bytes = stored_bytes
        slots = allocate_slots(plan.most_slots, DIRECT_ALIGN)  # never touched
        self._cache = ExpertCache(slots, queue, DEFAULT_POLICY(layers, experts, k), experts)
        self._look = LookAhead(layers, k, LOOK_AHEAD) if plan.most_slots < config.num_experts_total else None
        self._at = 0  # in the routing
        self._positions = 0
        self._shared = (-1, 0)

    def forget(self) -> None:
        """Empty the context, as before another prompt."""
        self._positions = 0

    def prefill(self, tokens: int) -> Phase:
        began = self._reading()
        for start in range(0, tokens, self._plan.chunk):
            count = min(self._plan.chunk, tokens - start)
            if count == 1:
                self._token()
            else:
                self._chunk(count)
        return self._phase(began, tokens)

    def decode(self, tokens: int) -> Phase:
        began = self._reading()
        for _ in range(tokens):
            self._token()
        return self._phase(began, tokens)

    def _reading(self) -> tuple[float, float, CacheCounters, int]:
        return self.clock.sec, self._compute_sec, self._cache.counters(), self._queue.withdrawn_bytes

    def _phase(self, began: tuple[float, float, CacheCounters, int], tokens: int) -> Phase:
        sec, compute, counters, withdrawn = self._reading()
        counters -= began[2]
        records = counters.bytes_read // DIRECT_ALIGN
        nbytes = records * self._stored_bytes + withdrawn - began[3]
        return Phase(tokens, sec - began[0], compute - began[1], counters, records, nbytes)

    def _spend(self, sec: float) -> None:
        self.clock.sec += sec
        self._compute_sec += sec

    def _next(self, tokens: int) -> slice:
        """That many tokens of the routing, which begins again at its end."""
        if self._at + tokens > self._routing.tokens:
            self._at = 0
        self._at += tokens
        return slice(self._at - tokens, self._at)

    def _share_memory(self, tokens: int) -> None:
        """As Engine does before each step."""
        positions = self._positions + tokens
        if self._plan.most_slots > self._plan.slots and (positions // 16, tokens) != self._shared:
            self._shared = positions // 16, tokens
            plan, config = self._plan, self._config
            kv_bytes = kv_touched_bytes(config, plan.context, plan.chunk, self._kv, positions + 16)
            limit = slots_at(plan, config, self._record_bytes, kv_bytes, tokens)
            self._cache.resize(min(limit, self._plan.most_slots))

    def _token(self) -> None:
        self._share_memory(1)
        at = self._next(1)
        ids = self._routing.ids[at.start].tolist()
        guesses = self._routing.guesses[at.start].tolist()
        look, began, computed, wanted = self._look, self.clock.sec, self._compute_sec, self._cache.wanted
        if look is not None:
            look.begin_token()
        for layer, experts in enumerate(ids):
            self._layer_of_token(layer, experts, guesses)
        self._cache.step(1)
        if look is not None:
            seconds = self.clock.sec - began
            waited = seconds - (self._compute_sec - computed)
            look.trial.token(seconds, waited, self._cache.wanted - wanted)
        self._spend(self._costs.head_sec)
        self._positions += 1

    def _layer_of_token(self, layer: int, experts: list[int], guesses: Sequence[list[int]]) -> None:
        costs, cache, look = self._costs, self._cache, self._look
        self._spend(costs.route_sec)
        if look is not None:
            look.judge(layer, experts)
        slots = cache.resident_slots(layer, experts)
        if slots is not None:
            self._spend(self._attend_sec(layer))
            self._expect(layer, guesses)
            self._spend(costs.experts_sec(len(experts)) + costs.hit_python_sec)
            return
        with cache.request(layer, experts) as ticket:
            self._spend(costs.miss_python_sec)
            self._spend(self._attend_sec(layer))
            self._expect(layer, guesses)
            for landed in ticket:
                self._spend(costs.experts_sec(len(landed)) + costs.landed_python_sec)

    def _expect(self, layer: int, guesses: Sequence[list[int]]) -> None:
        look = self._look
        if look is None:
            return
        for target in look.targets(layer):
            self._spend(self._costs.guess_sec)
            missing = self._cache.expect(target, guesses[target], look.likelihoods(layer, target))
            if missing:
                look.remember(layer, target, [(guesses[target][rank], rank) for rank in missing])

    def _attend_sec(self, layer: int) -> float:
        window = self._config.window(layer)
        seen = min(self._positions, window) if window else self._positions
        return self._costs.attend_sec + seen * self._costs.key_sec

    def _chunk(self, tokens: int) -> None:
        self._share_memory(tokens)
        costs, cache, config = self._costs, self._cache, self._config
        at = self._next(tokens)
        for layer in range(config.num_hidden_layers):
            work = group_by_expert(self._routing.ids[at, layer].astype(np.int32))
            work = plan_reads(work, partial(cache.is_resident, layer))
            pairs = [len(entry.pairs) for entry in work]
            with cache.request(layer, [entry.expert for entry in work], pairs, tokens) as ticket:
                if self._look is not None and layer + 1 < config.num_hidden_layers:
                    ids, counts = np.unique(self._routing.guesses[at, layer + 1], return_counts=True)
                    wanted = ids[np.argsort(-counts, kind="stable")].tolist()
                    cache.expect(layer + 1, wanted, [1.0] * len(wanted), most_under_way=len(cache.slots))
                seen = self._positions + (tokens - 1) / 2
                window = config.window(layer)
                seen = min(seen, window) if window else seen
                self._spend(costs.chunk_attend_sec(tokens) + tokens * seen * costs.chunk_key_sec)
                for landed in ticket:
                    self._spend(costs.chunk_experts_sec(len(landed), sum(pairs[position] for position, _ in landed)))
        cache.step(tokens)
        self._spend(costs.head_sec)
        self._positions += tokens
