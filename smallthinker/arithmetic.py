"""A model's arithmetic: its weights bound to the kernels, checked once, and what one step's kernels share.

Owns every call of a kernel on the way from token ids to logits. Knows nothing about the order of that way
(kernels/layers/layers.cpp), nor about where experts come from.

Shape letters: T tokens of a step, d hidden_size, D head_dim, k experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.cache.sequence_state import SequenceState
from smallthinker.exact_head import ExactHead, bind_norm
from smallthinker.expert_store.format import Formats
from smallthinker.lossy_routing import LossyRouting, RoutingCounters
from smallthinker.models.description import Ffn, LayerInputs, Model, Norm, Router
from smallthinker.models.supported import check_supported
from smallthinker.models.tensors import (
    BESIDE_NORMS,
    EMBEDDING,
    EXPERT_ROLES,
    INPUT_GATE,
    INPUT_OUT_NORM,
    INPUT_PROJ,
    LAYER_EMBEDDINGS,
    LAYER_INPUTS_NORM,
    LAYER_INPUTS_PROJ,
    ROUTER,
)
from smallthinker.rotary import RotaryTable
from smallthinker.router.predictor import Predictors

Floats = npt.NDArray[np.float32]
MANY_TOKENS = 16  # of a step, from which most of what a layer's router names is wanted; fewer are an answer's
Around = tuple[_kernels.Norm | None, _kernels.Norm | None, _kernels.Norm | None]


Span = tuple[SequenceState, Sequence[int]]


class Route(NamedTuple):
    """A layer's exact choice: `ids` int32 [T, k], best first; `weights` float32 [T, k], summing to 1 for each token.
    `experts`: the distinct ones, of one token best first; `pairs` of each, token * k + rank."""

    ids: npt.NDArray[np.int32]
    weights: Floats
    experts: list[int]
    pairs: list[list[int]]


class Step:
    """What the layers of one step share: the states `x` [T, d], which each changes in place, their last norm, and where
    the tokens go: `counts` of each sequence from its position `starts` on. used_of_layers: k of each. inputs: what each
    layer is given of each token, [T, layers * numbers]."""

    def __init__(self, spans: Sequence[Span], hidden_size: int, used_of_layers: Sequence[int]) -> None:
        self.sequences = [state for state, _ in spans]
        self.counts = [len(tokens) for _, tokens in spans]
        self.starts = [state.begin(len(tokens)) for state, tokens in spans]
        self.tokens = sum(self.counts)
        self.x = np.empty((self.tokens, hidden_size), np.float32)
        self.normed = np.empty_like(self.x)
        self._used_of_layers, k = used_of_layers, max(used_of_layers)
        self.ids = np.empty((self.tokens, k), np.int32)
        self.weights = np.empty((self.tokens, k), np.float32)
        self.cos = self.sin = self.inputs = np.empty((self.tokens, 0), np.float32)

    def chosen(self, layer: int) -> tuple[npt.NDArray[np.int32], Floats]:
        """Ids and weights [T, k] of the last route, this layer's: it lies at the start of both arrays."""
        k = self._used_of_layers[layer]
        shape, n = (self.tokens, k), self.tokens * k
        return self.ids.ravel()[:n].reshape(shape), self.weights.ravel()[:n].reshape(shape)


class DenseWeights(Protocol):
    """Of a `Store`, what is asked for here: a model's shapes, and its weights by their names in format.dense_table."""

    config: Model
    formats: Formats

    def dense_names(self) -> list[str]: ...

    def dense(self, name: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]: ...

    def table_rows(self, name: str, group: int) -> npt.NDArray[np.uint8]: ...


class Arithmetic:
    """Of one model. slots: uint8 [n, record_bytes], the experts' memory. predictor: what guesses later layers' experts
    better than their own routers do. logits: instead of the exact head, of normed states [T, d] -> [T, V]. context:
    positions that sequences are planned for; all that the model was made for, if it isn't said. lossy: of steps of
    fewer than MANY_TOKENS tokens. Raises ConfigError, naming the field, for a description that no kernel computes."""

    def __init__(
        self,
        store: DenseWeights,
        pool: _kernels.ThreadPool,
        slots: npt.NDArray[np.uint8],
        predictor: Predictors | None = None,
        logits: Callable[[Floats], Floats] | None = None,
        context: int | None = None,
        lossy: LossyRouting | None = None,
    ) -> None:
        config = store.config
        check_supported(config)
        self.config, self.pool, self._formats = config, pool, store.formats
        self.neurons = 0
        self._dense: dict[str, npt.NDArray[Any]] = {name: store.dense(name) for name in store.dense_names()}
        self._logits = logits  # nothing bound to self: a cycle would keep the weights until they are collected
        self._layers = range(config.num_layers)
        self._k = [0 if layer.ffn is None else layer.ffn.k for layer in config.layers]
        networks = [(number, layer.ffn) for number, layer in enumerate(config.layers) if layer.ffn]
        self._weighs_input = frozenset(n for n, ffn in networks if ffn.router and ffn.router.applied_to == "input")
        self._rotary = RotaryTable(config, context or config.context)
        self._head = ExactHead(config, self._formats, pool, self._dense.__getitem__)
        self._neurons_per_token = sum(layer.ffn.k * layer.ffn.width for layer in config.layers if layer.ffn is not None)
        self._mixers = [self._attention_layer(layer) for layer in self._layers]
        ffns = [self._ffn(layer) for layer in self._layers]
        gates = [self._input_gate(layer) for layer in self._layers] if config.layer_inputs else []
        self._forward = _kernels.Forward(pool, self._mixers, ffns, slots, predictor or {}, gates)
        self._table_rows = store.table_rows
        if lossy:
            self._forward.be_lossy(MANY_TOKENS, lossy.experts or 0, lossy.prefer, lossy.skip)

    def begin(self, spans: Sequence[Span]) -> Step:
        """Embed the tokens of each span, which follow those in its state."""
        c = self.config
        step = Step(spans, c.hidden_size, self._k)
        ids = np.fromiter(chain.from_iterable(tokens for _, tokens in spans), np.int32, step.tokens)
        quant = self._formats.of(EMBEDDING, None)
        _kernels.embed(quant, self._dense[EMBEDDING], c.vocab_size, c.hidden_size, ids, step.x)
        if c.embedding_scale != 1:
            step.x *= np.float32(c.embedding_scale)
        if c.layer_inputs is not None:
            step.inputs = self._layer_inputs(step.x, ids, c.layer_inputs)
        places = zip(step.starts, step.counts, strict=True)
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64) for start, n in places])
        step.cos, step.sin = self._rotary.angles(positions)
        return step

    def layers_of(self, step: Step, slot_table: npt.NDArray[np.int32]) -> _kernels.Step:
        """The arithmetic of the step's layers, as `_kernels.Layers` asks it. slot_table: `ExpertCache.slot_table`."""
        return self._forward.step(
            step.x,
            step.normed,
            step.ids,
            step.weights,
            slot_table,
            [state.bound for state in step.sequences],
            step.starts,
            step.counts,
            step.cos,
            step.sin,
            step.inputs,
        )

    @property
    def live_neurons(self) -> int:
        """Of `neurons`, those that had to be computed so far; ReLU made the others zero."""
        return self._forward.live_neurons

    def routing_counters(self) -> RoutingCounters:
        return RoutingCounters(*self._forward.lossy_counts())

    def logits(self, step: Step, rows: npt.NDArray[np.intp] | None) -> Floats:
        """[rows, V] of these rows of the states; None: of all."""
        self.neurons += step.tokens * self._neurons_per_token
        x = step.x if rows is None else step.x[rows]
        normed = self._head.normed(x)
        return self._head.logits(normed) if self._logits is None else self._logits(normed)

    def normed(self, x: Floats) -> Floats:
        """States [T, d] behind the final norm."""
        return self._head.normed(x)

    def release_scratch(self) -> None:
        """Free what a large step left; the next takes what it needs."""
        self.pool.release_scratch()
        self._forward.release()

    def _layer_inputs(self, x: Floats, ids: npt.NDArray[np.int32], how: LayerInputs) -> Floats:
        """[T, layers * size] of embedded tokens [T, d]. Raises StoreReadError: the table's rows are on the disk."""
        width, d = self.config.num_layers * how.size, self.config.hidden_size
        found = np.empty((len(ids), width), np.float32)
        quant = self._formats.of(LAYER_INPUTS_PROJ, None)
        _kernels.linear(self.pool, quant, self._dense[LAYER_INPUTS_PROJ], width, d, x, found)
        found *= np.float32(how.projection_scale)
        rows = found.reshape(-1, how.size)
        _kernels.norm(bind_norm(how.norm, how.size, LAYER_INPUTS_NORM, self._dense.__getitem__), rows, rows)
        quant, groups = self._formats.of(LAYER_EMBEDDINGS, None), ids // _kernels.TILE_ROWS
        for group in np.unique(groups).tolist():  # as they lie on the disk
            tokens = np.flatnonzero(groups == group)
            of_tokens = np.empty((len(tokens), width), np.float32)
            tile = self._table_rows(LAYER_EMBEDDINGS, group)
            _kernels.embed(quant, tile, _kernels.TILE_ROWS, width, ids[tokens] % _kernels.TILE_ROWS, of_tokens)
            found[tokens] += of_tokens * np.float32(how.embedding_scale)
        found *= np.float32(how.scale)
        return found

    def _input_gate(self, number: int) -> _kernels.InputGate | None:
        layer, inputs = self.config.layers[number], self.config.layer_inputs
        if layer.input_gate is None or inputs is None:
            return None
        return _kernels.InputGate(
            (self._formats.of(INPUT_GATE, number), self._formats.of(INPUT_PROJ, number)),
            self.config.hidden_size,
            inputs.size,
            layer.input_gate.activation.kind,
            self._dense[f"layers.{number}.{INPUT_GATE}"],
            self._dense[f"layers.{number}.{INPUT_PROJ}"],
            _kernels.Residual(
                self._norm(number, layer.input_gate.after, INPUT_OUT_NORM), 1.0, self._output_scale(number)
            ),
        )

    def _attention_layer(self, number: int) -> _kernels.AttentionLayer:
        layer, d = self.config.layers[number], self.config.hidden_size
        mixer, norms = layer.attention, layer.norms

        def of(role: str) -> npt.NDArray[Any]:
            return self._dense[f"layers.{number}.{role}"]

        def norm(how: Norm | None, size: int, role: str) -> _kernels.Norm | None:
            return None if how is None else bind_norm(how, size, role, of)

        has_keys = mixer.kv_of is None
        has_values = has_keys and mixer.values == "own"
        absent = ("" if has_values else "v") + ("" if has_keys else "k")
        formats = {part: self._formats.of(f"{part}_proj", number) for part in "qkvo" if part not in absent}
        per_head = mixer.qk_norm_of == "head"
        q_size, k_size = (mixer.head_dim * (1 if per_head else heads) for heads in (mixer.heads, mixer.kv_heads))
        # values that are keys have their bias, too
        q_bias, k_bias, v_bias = (
            of(f"{part}_proj_bias") if mixer.bias and part not in absent else None
            for part in ("q", "k", "v" if has_values else "k")
        )
        rope, growth = mixer.rope, mixer.growth
        return _kernels.AttentionLayer(
            self.pool,
            (formats["q"], formats.get("k", formats["q"]), formats.get("v", formats["q"]), formats["o"]),
            norm(norms.before_mixer, d, "input_layernorm"),
            of("q_proj"),
            of("k_proj") if has_keys else None,
            of("v_proj") if has_values else None,
            of("o_proj"),
            norm(norms.before_ffn, d, "post_attention_layernorm"),
            d,
            mixer.heads,
            mixer.kv_heads,
            mixer.head_dim,
            mixer.window,
            rope=None if rope is None else (self._rotary.first_pair[rope], rope.size, rope.pairing),
            scale=mixer.scale,
            biases=(q_bias, k_bias, v_bias, of("o_proj_bias") if mixer.out_bias else None),
            norms=(
                norm(mixer.qk_norm, q_size, "q_norm"),
                norm(mixer.qk_norm, k_size, "k_norm") if has_keys else None,
                norm(mixer.v_norm, mixer.head_dim, "v_norm") if has_keys else None,
            ),
            clip=mixer.clip,
            softcap=mixer.softcap,
            sinks=of("sinks") if mixer.sinks else None,
            chunk=mixer.chunk,
            growth=None if growth is None else (growth.beta, growth.every, growth.offset),
            residual=_kernels.Residual(norm(norms.after_mixer, d, "attention_out_norm"), layer.residual_scale),
            parallel=norms.parallel,
        )

    def _ffn(self, number: int) -> _kernels.Ffn:
        layer = self.config.layers[number]
        ffn = layer.ffn
        assert ffn is not None
        router = ffn.router
        return _kernels.Ffn(
            self._formats.of_experts(number),
            self.config.hidden_size,
            ffn.width,
            ffn.activation.kind,
            ffn.gated,
            ffn.experts,
            ffn.k,
            None if router is None else self._scoring(number, router),
            None if router is None else self._dense[f"layers.{number}.{ROUTER}"],
            router is not None and router.reads != "residual",
            self._every_token_s(number, ffn),
            ffn.bias,
            (ffn.activation.limit, ffn.activation.alpha),
            number in self._weighs_input,
            residual=self._ffn_residual(number),
            whole=self._formats.whole,
            router_norm=None if router is None else self._norm(number, router.norm, "router_norm"),
            reads_state=router is not None and router.reads == "mixed",
        )

    def _scoring(self, number: int, how: Router) -> _kernels.Scoring:
        name, none = f"layers.{number}.{ROUTER}", np.empty(0, np.float32)
        return _kernels.Scoring(
            how.experts,
            how.k,
            how.score,
            over_all=how.over == "all",
            normalise=how.normalise,
            bias=none if how.bias == "none" else self._dense[f"{name}_bias"],
            bias_chooses=how.bias == "choice",
            groups=how.groups,
            kept_groups=how.kept_groups,
            scale=how.scale,
            expert_scale=self._dense[f"{name}_expert_scale"] if how.expert_scale else none,
            logit_scale=how.logit_scale,
        )

    def _norm(self, number: int, how: Norm | None, role: str) -> _kernels.Norm | None:
        """Of a layer, of states."""
        size, name = self.config.hidden_size, f"layers.{number}.{role}"
        return None if how is None else bind_norm(how, size, name, self._dense.__getitem__)

    def _every_token_s(self, number: int, ffn: Ffn) -> _kernels.SharedFfn | None:
        """The network that is shared, or beside the experts."""
        beside = ffn.beside
        if beside is None:
            return None if ffn.shared is None else self._shared(number, ffn.shared, "shared", ffn.shared_gate)
        norms = zip((beside.before, beside.after, beside.after_experts), BESIDE_NORMS, strict=True)
        before, after, after_experts = (self._norm(number, how, role) for how, role in norms)
        return self._shared(number, beside.ffn, "beside", around=(before, after, after_experts))

    def _shared(
        self, number: int, ffn: Ffn, prefix: str, has_output_gate: bool = False, around: Around | None = None
    ) -> _kernels.SharedFfn:
        roles = [f"{prefix}_{role}" for role in EXPERT_ROLES] + ["shared_expert_gate"]
        gate, up, down, output_gate = (self._formats.of(role, number) for role in roles)
        weights = [self._dense.get(f"layers.{number}.{role}") for role in roles]
        assert weights[1] is not None and weights[2] is not None and (weights[3] is not None) == has_output_gate
        return _kernels.SharedFfn(
            (gate, up, down, output_gate),
            self.config.hidden_size,
            ffn.width,
            ffn.activation.kind,
            weights[0],
            weights[1],
            weights[2],
            weights[3],
            around,
        )

    def _ffn_residual(self, number: int) -> _kernels.Residual:
        layer = self.config.layers[number]
        norm = self._norm(number, layer.norms.after_ffn, "ffn_out_norm")
        is_last = layer.input_gate is None
        return _kernels.Residual(norm, layer.residual_scale, self._output_scale(number) if is_last else 1.0)

    def _output_scale(self, number: int) -> float:
        has_one = self.config.layers[number].output_scale
        return float(self._dense[f"layers.{number}.output_scale"][0]) if has_one else 1.0
