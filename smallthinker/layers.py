"""The decoder's layers: token ids in, logits out, with experts requested before attention and used as they land.

Owns the order of one token's way through the model. The arithmetic is in `_kernels`, the choice of experts in `router`,
their bytes in `cache`; knows nothing about text, sampling or memory budgets.

Shape letters: T new tokens, d hidden_size, H query heads, K key/value heads, D head_dim, E experts of a layer,
k experts per token, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.cache.expert_cache import MOST_UNDER_WAY, ExpertCache
from smallthinker.cache.kv_cache import KVCache
from smallthinker.cache.ticket import Ticket
from smallthinker.config import ModelConfig
from smallthinker.errors import CancelledError
from smallthinker.expert_store.format import Quant
from smallthinker.lossy_head import LossyHead
from smallthinker.router.exact import ExactRouter, Route
from smallthinker.router.look_ahead import LookAhead
from smallthinker.router.planner import ExpertWork, group_by_expert, plan_reads
from smallthinker.router.predictor import FINAL, Matrices

Floats = npt.NDArray[np.float32]
LOOK_AHEAD = (1,)  # layers; see docs/benchmarks.md
_MANY_TOKENS = 16  # from which most of what the next layer's router names is wanted


def never() -> bool:
    return False


class Observers(NamedTuple):
    """What a Decoder shows while it computes. x is its own memory, to be copied if kept and never written to.

    routed sees each layer's input x [T, d] and its route before anything is computed; attended, x once the layer's
    attention has been added; final, what goes into the head's norm.
    """

    routed: Callable[[int, Floats, Route], None] | None = None
    attended: Callable[[int, Floats], None] | None = None
    final: Callable[[Floats], None] | None = None

    @property
    def watch_layers(self) -> bool:
        return self.routed is not None or self.attended is not None


class _Caches(NamedTuple):
    """Of each span: its KV cache, its first position and its number of tokens."""

    kvs: list[KVCache]
    starts: list[int]
    counts: list[int]


class _Step(NamedTuple):
    """What the layers of one step share: the states x [T, d], which each changes in place, and normed [T, d], the last
    norm of them; cos, sin [T, D / 2] of the positions; weights [T, k] of the last route."""

    x: Floats
    normed: Floats
    caches: _Caches
    cos: Floats
    sin: Floats
    weights: Floats


class DenseWeights(Protocol):
    """Of a `Store`, what a Decoder asks for: a model's shapes, and its weights by their names in format.dense_table."""

    config: ModelConfig
    quant: Quant

    def dense_names(self) -> list[str]: ...

    def dense(self, name: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]: ...


class Decoder:
    """One model's forward pass over KV caches that it is handed and its own expert cache.

    `prefetch=False` asks for experts only after attention, and `look_ahead=()` guesses none of later layers: for
    measuring what asking early is worth. `predictor` guesses them better than their own routers do. `live_neurons` of
    `neurons` had to be computed so far; ReLU made the others zero.
    """

    def __init__(
        self,
        store: DenseWeights,
        experts: ExpertCache,
        pool: _kernels.ThreadPool,
        *,
        prefetch: bool = True,
        look_ahead: Sequence[int] = LOOK_AHEAD,
        predictor: Matrices | None = None,
        lossy_head: LossyHead | None = None,
    ) -> None:
        config = store.config
        self.config, self.quant = config, store.quant
        self.experts, self.pool, self.prefetch = experts, pool, prefetch
        self.lossy_head = lossy_head
        self.live_neurons = self.neurons = 0
        self.observers = Observers()
        self.dense: dict[str, npt.NDArray[Any]] = {name: store.dense(name) for name in store.dense_names()}
        self.router = ExactRouter(
            pool,
            [self.dense[f"layers.{layer}.router"] for layer in range(config.num_hidden_layers)],
            config.hidden_size,
            config.moe_num_primary_experts,
            config.moe_num_active_primary_experts,
            config.gating,
            predictor,
        )
        self.look_ahead: LookAhead | None = None
        if look_ahead and prefetch and len(experts.slots) < config.num_experts_total:
            k, next_token = config.moe_num_active_primary_experts, predictor is not None
            self.look_ahead = LookAhead(config.num_hidden_layers, k, look_ahead, next_token)
        self.token_experts = _kernels.TokenExperts(
            pool,
            store.quant,
            config.hidden_size,
            config.moe_ffn_hidden_size,
            config.moe_num_active_primary_experts,
            experts.slots,
        )
        self.attention = [self._attention_layer(layer) for layer in range(config.num_hidden_layers)]
        self.token_layers = _kernels.TokenLayers(self.router.of_token, self.attention, self.token_experts)
        # of one token, and behind them the last guess of a later layer's
        self._routes = np.empty((config.num_hidden_layers + 1, config.moe_num_active_primary_experts), np.int32)
        self._no_layers = np.full(config.num_hidden_layers, -1, np.int32)

    def _attention_layer(self, layer: int) -> _kernels.AttentionLayer:
        c, name = self.config, f"layers.{layer}."
        return _kernels.AttentionLayer(
            self.pool,
            self.quant,
            self.dense[name + "input_layernorm"],
            self.dense[name + "q_proj"],
            self.dense[name + "k_proj"],
            self.dense[name + "v_proj"],
            self.dense[name + "o_proj"],
            self.dense[name + "post_attention_layernorm"],
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.rms_norm_eps,
            c.use_rope[layer],
            c.window(layer),
        )

    def forward(
        self,
        spans: Sequence[tuple[KVCache, Sequence[int]]],
        *,
        all_logits: bool = False,
        cancelled: Callable[[], bool] = never,
    ) -> Floats:
        """Run T tokens: those of each span after the ones in its KV cache, which is another for each span.

        A span has at most the tokens of the planned chunk. Returns logits [spans, V] of each one's last token, or
        [T, V] with `all_logits`; no span's depend on what else is computed. Raises CancelledError between two layers
        when `cancelled()` turns true (the KV caches then hold what they held before), StoreReadError when experts can't
        be read.
        """
        ids = np.fromiter(chain.from_iterable(tokens for _, tokens in spans), np.int32)
        counts = [len(tokens) for _, tokens in spans]
        starts = [kv.begin(len(tokens)) for kv, tokens in spans]
        caches = _Caches([kv for kv, _ in spans], starts, counts)
        x = np.empty((len(ids), self.config.hidden_size), np.float32)
        _kernels.embed(self.quant, self.dense["embed_tokens"], self.config.vocab_size, x.shape[1], ids, x)
        normed = np.empty_like(x)
        cos, sin = self._rope_angles(caches)
        weights = np.empty((len(ids), self.config.moe_num_active_primary_experts), np.float32)
        step = _Step(x, normed, caches, cos, sin, weights)
        began, waited, wanted = time.perf_counter(), self.experts.stall_sec, self.experts.wanted
        is_few = len(ids) < _MANY_TOKENS
        look = self.look_ahead if is_few else None
        if look is not None:
            look.begin_token(several=len(ids) > 1)
        if is_few and len(ids) == 1 and not self.observers.watch_layers:
            self._layers_of_token(step, cancelled)
        else:
            for layer in range(self.config.num_hidden_layers):
                if cancelled():
                    raise CancelledError("cancelled")
                if is_few and not self.observers.watch_layers:
                    self._layer_of_tokens(layer, step)
                else:
                    self._layer_of_chunk(layer, step)
        for kv, n in zip(caches.kvs, counts, strict=True):
            kv.advance(n)
        self.experts.step(len(ids))
        if look is not None:
            each = 1 / len(ids)
            waited = self.experts.stall_sec - waited
            look.trial.token((time.perf_counter() - began) * each, waited * each, self.experts.wanted - wanted)
            if len(ids) == 1:
                self._expect(look, FINAL, x)
        if self.observers.final is not None:
            self.observers.final(x)
        self.neurons += (
            len(ids) * self.config.num_hidden_layers * self.config.moe_num_active_primary_experts
        ) * self.config.moe_ffn_hidden_size
        return self._head(x if all_logits or len(x) == len(spans) else x[np.cumsum(counts) - 1])

    def _layers_of_token(self, step: _Step, cancelled: Callable[[], bool]) -> None:
        """All layers for x [1, d], in place: without Python as long as nothing is missing, and one by one where
        something is."""
        x, normed, caches, cos, sin, weights = step
        cache, look, layers = self.experts, self.look_ahead, self.config.num_hidden_layers
        ahead = self._no_layers if look is None else look.next_layers()
        (kv,), (start,) = caches.kvs, caches.starts
        layer = 0
        while layer < layers:
            if cancelled():
                raise CancelledError("cancelled")
            last = cache.layers_in_table(layer, layers)
            at, why, live = self.token_layers.run(
                layer, last, x, normed, weights, cache.slot_table, ahead, kv.layers, start, cos, sin, self._routes
            )
            self.live_neurons += live
            attended = why == self.token_layers.ATTENDED
            cache.used_from_table(layer, self._routes[layer : at + attended].tolist())
            layer = at
            if attended:
                assert look is not None
                slots = cache.slot_table[layer * self.config.moe_num_primary_experts + self._routes[layer]].tolist()
                self._expect(look, layer, x, [self._routes[layers].tolist()] if ahead[layer] >= 0 else None)
                self.live_neurons += self.token_experts.add(x, normed, slots, weights)
                layer += 1
            elif layer < layers:
                # exact: from the raw residual, before this layer's norm and attention
                is_routed = why == self.token_layers.ROUTED
                experts = self._routes[layer].tolist() if is_routed else self.router.route_token(layer, x, weights)
                self._layer_of_token(layer, experts, step)
                layer += 1

    def _layer_of_token(self, layer: int, experts: list[int], step: _Step) -> None:
        """One layer for x [1, d], in place, with the experts and weights [1, k] of its route."""
        x, normed, weights = step.x, step.normed, step.weights
        cache, look = self.experts, self.look_ahead
        if look is not None:
            look.judge(layer, experts)
        slots = cache.resident_slots(layer, experts)
        if slots is not None:  # nothing to read
            self._attend(layer, step)
            if look is not None:
                self._expect(look, layer, x)
            self.live_neurons += self.token_experts.add(x, normed, slots, weights)
            return
        if not self.prefetch:
            self._attend(layer, step)
        with cache.request(layer, experts) as ticket:  # misses go to the disk now
            if look is not None:  # for when it is through with those before attention is
                self._expect(look, layer, x)
            if self.prefetch:
                self._attend(layer, step)  # arithmetic while the disk works
            if look is not None:
                self._expect(look, layer, x)
            for landed in ticket:
                places, slots = [place for place, _ in landed], [slot for _, slot in landed]
                self.live_neurons += self.token_experts.compute(normed, places, slots)
        self.token_experts.combine(x, weights)

    def _expect(self, look: LookAhead, source: int, x: Floats, answers: list[list[int]] | None = None) -> None:
        """Have what later layers will likely want read in the disk's idle time. x [1, d]: after the attention of layer
        `source`; or the final state, for the first layers of the next token: the head gives time to read. answers: of
        the layers that look ahead names, where they have been asked already."""
        ahead = look.targets(source)
        if not ahead:
            return
        for target, answer in zip(ahead, answers or self.router.guess(source, x, ahead), strict=True):
            missing = self.experts.expect(target, answer, look.likelihoods(source, target))
            if missing:
                look.remember(source, target, [(answer[rank], rank) for rank in missing])

    def _layer_of_tokens(self, layer: int, step: _Step) -> None:
        """One layer for x [T, d], a few tokens, in place."""
        x, normed, weights = step.x, step.normed, step.weights
        cache, look, tokens = self.experts, self.look_ahead, len(x)
        experts, pairs = self.router.route_tokens(layer, x, weights)
        if look is not None:
            look.judge(layer, experts)
        slots = cache.resident_slots(layer, experts, [len(of_expert) for of_expert in pairs], tokens)
        if slots is not None:  # nothing to read
            self._attend(layer, step)
            if look is not None:
                self._expect_of_several(look, layer, x)
            self.live_neurons += self.token_experts.add_several(x, normed, slots, pairs, weights)
            return
        if not self.prefetch:
            self._attend(layer, step)
        pairs, ticket = self._request(layer, list(map(ExpertWork, experts, pairs)), tokens)
        with ticket:
            if look is not None:
                self._expect_of_several(look, layer, x)
            if self.prefetch:
                self._attend(layer, step)
            if look is not None:
                self._expect_of_several(look, layer, x)
            for landed in ticket:
                chosen, slots = [pairs[position] for position, _ in landed], [slot for _, slot in landed]
                self.live_neurons += self.token_experts.compute_several(normed, chosen, slots)
        self.token_experts.combine(x, weights)

    def _expect_of_several(self, look: LookAhead, source: int, x: Floats) -> None:
        """As `_expect`, for x [T, d]."""
        ahead = look.targets(source)
        if not ahead:
            return
        for target, (wanted, ranks) in zip(ahead, self.router.guess_tokens(source, x, ahead), strict=True):
            of_rank = look.likelihoods(source, target)
            likelihoods = [of_rank[rank] for rank in ranks]
            missing = self.experts.expect(target, wanted, likelihoods, 2 * MOST_UNDER_WAY)
            if missing:
                look.remember(source, target, [(wanted[place], ranks[place]) for place in missing])

    def _layer_of_chunk(self, layer: int, step: _Step) -> None:
        """One layer for x [T, d], in place."""
        x, normed = step.x, step.normed
        route = self.router.route(layer, x)
        if self.observers.routed is not None:
            self.observers.routed(layer, x, route)
        if not self.prefetch:
            self._attend(layer, step)
        pairs, ticket = self._request(layer, group_by_expert(route.ids), len(x))
        with ticket:
            if self.look_ahead is not None and len(x) >= _MANY_TOKENS and layer + 1 < self.config.num_hidden_layers:
                self._expect_next_layer(layer, x)
            if self.prefetch:
                self._attend(layer, step)
            if self.observers.attended is not None:
                self.observers.attended(layer, x)
            # summed in the router's order, whichever lands first
            contributions = np.empty((route.ids.size, x.shape[1]), np.float32)
            for landed in ticket:
                chosen = [pairs[position] for position, _ in landed]
                self._experts(normed, [slot for _, slot in landed], chosen, contributions)
        _kernels.combine(self.pool, x, contributions, route.weights)

    def _expect_next_layer(self, layer: int, x: Floats) -> None:
        """Many tokens want most of the next layer's experts: first those that most of them want."""
        ids, counts = np.unique(self.router.route(layer + 1, x).ids, return_counts=True)
        wanted = ids[np.argsort(-counts, kind="stable")].tolist()
        self.experts.expect(layer + 1, wanted, [1.0] * len(wanted), most_under_way=len(self.experts.slots))

    def _request(self, layer: int, work: list[ExpertWork], tokens: int) -> tuple[list[list[int]], Ticket]:
        """The pairs of each expert that is asked for (see ExpertWork), and the ticket."""
        work = plan_reads(work, partial(self.experts.is_resident, layer))
        pairs = [entry.pairs for entry in work]
        ticket = self.experts.request(layer, [entry.expert for entry in work], list(map(len, pairs)), tokens)
        return pairs, ticket

    def _attend(self, layer: int, step: _Step) -> None:
        x, normed, caches, cos, sin, _ = step
        layers = [kv.layers[layer] for kv in caches.kvs]
        self.attention[layer].forward(x, layers, caches.starts, caches.counts, cos, sin, normed)

    def _rope_angles(self, caches: _Caches) -> tuple[Floats, Floats]:
        spans = zip(caches.starts, caches.counts, strict=True)
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64) for start, n in spans])
        cos = np.empty((len(positions), self.config.head_dim // 2), np.float32)
        sin = np.empty_like(cos)
        _kernels.rope_angles(positions, self.config.head_dim, self.config.rope_theta, cos, sin)
        return cos, sin

    def _experts(self, normed: Floats, slots: list[int], pairs: list[list[int]], contributions: Floats) -> None:
        """What the experts in these slots give the tokens that chose them, each pair into its own row."""
        c = self.config
        self.live_neurons += _kernels.experts(
            self.pool,
            self.quant,
            c.hidden_size,
            c.moe_ffn_hidden_size,
            normed,
            self.experts.slots,
            np.array(slots, np.int32),
            np.array([0, *accumulate(map(len, pairs))], np.int32),  # 2 us; np.cumsum takes 11
            np.array(list(chain.from_iterable(pairs)), np.int32),
            c.moe_num_active_primary_experts,
            contributions,
        )

    def _head(self, x: Floats) -> Floats:
        if self.lossy_head is not None:
            return self.lossy_head.logits(self._norm("norm", x))
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self._linear(name, self._norm("norm", x), self.config.vocab_size)

    def _norm(self, name: str, x: Floats) -> Floats:
        out = np.empty_like(x)
        _kernels.rmsnorm(x, self.dense[name], self.config.rms_norm_eps, out)
        return out

    def _linear(self, name: str, x: Floats, rows: int) -> Floats:
        out = np.empty((len(x), rows), np.float32)
        _kernels.linear(self.pool, self.quant, self.dense[name], rows, x.shape[1], x, out)
        return out
