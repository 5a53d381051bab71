"""A model's arithmetic: its weights bound to the kernels, checked once, and what one step's kernels share.

Owns every call of a kernel on the way from token ids to logits. Knows nothing about the order of that way (forward.py),
nor about where experts come from.

Shape letters: T tokens of a step, d hidden_size, D head_dim, k experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.cache.sequence_state import SequenceState
from smallthinker.expert_store.format import Formats, Quant
from smallthinker.models.description import Model
from smallthinker.models.supported import check_supported
from smallthinker.models.tensors import EMBEDDING, FINAL_NORM, ROUTER, head_role
from smallthinker.router.predictor import Matrices

Floats = npt.NDArray[np.float32]


Span = tuple[SequenceState, Sequence[int]]


class Route(NamedTuple):
    """A layer's exact choice: `ids` int32 [T, k], best first; `weights` float32 [T, k], summing to 1 for each token.
    `experts`: the distinct ones, of one token best first; `pairs` of each, token * k + rank."""

    ids: npt.NDArray[np.int32]
    weights: Floats
    experts: list[int]
    pairs: list[list[int]]


class Stop(NamedTuple):
    """Where `run` ended. `used`: of every layer that found its experts in slots, experts and the tokens of each.
    `route`: of a layer that didn't, nothing of which is computed; or, with a `guess`, of one whose attention has been
    added: the guess, experts and ranks of a later layer's, is not all in slots."""

    layer: int
    used: list[tuple[list[int], list[int]]]
    route: Route | None
    guess: tuple[list[int], list[int]] | None


class Step:
    """What the layers of one step share: the states `x` [T, d], which each changes in place, their last norm, and where
    the tokens go: `counts` of each sequence from its position `starts` on. k: of the layer that uses most experts."""

    def __init__(self, spans: Sequence[Span], hidden_size: int, k: int) -> None:
        self.sequences = [state for state, _ in spans]
        self.counts = [len(tokens) for _, tokens in spans]
        self.starts = [state.begin(len(tokens)) for state, tokens in spans]
        self.tokens = sum(self.counts)
        self.x = np.empty((self.tokens, hidden_size), np.float32)
        self.normed = np.empty_like(self.x)
        self.ids = np.empty((self.tokens, k), np.int32)
        self.weights = np.empty((self.tokens, k), np.float32)
        self.cos = self.sin = np.empty((0, 0), np.float32)

    def chosen(self, k: int) -> tuple[npt.NDArray[np.int32], Floats]:
        """Ids and weights [T, k] of the last route, a layer's with this k: it lies at the start of both arrays."""
        shape, n = (self.tokens, k), self.tokens * k
        return self.ids.ravel()[:n].reshape(shape), self.weights.ravel()[:n].reshape(shape)


class DenseWeights(Protocol):
    """Of a `Store`, what is asked for here: a model's shapes, and its weights by their names in format.dense_table."""

    config: Model
    formats: Formats

    def dense_names(self) -> list[str]: ...

    def dense(self, name: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]: ...


class Arithmetic:
    """Of one model. slots: uint8 [n, record_bytes], the experts' memory. predictor: what guesses later layers' experts
    better than their own routers do. logits: instead of the exact head, of normed states [T, d] -> [T, V]. Raises
    ConfigError, naming the field, for a description that no kernel computes.
    `live_neurons` of `neurons` had to be computed so far; ReLU made the others zero."""

    def __init__(
        self,
        store: DenseWeights,
        pool: _kernels.ThreadPool,
        slots: npt.NDArray[np.uint8],
        predictor: Matrices | None = None,
        logits: Callable[[Floats], Floats] | None = None,
    ) -> None:
        config = store.config
        check_supported(config)
        self.config, self.pool, self._formats = config, pool, store.formats
        self.live_neurons = self.neurons = 0
        self._dense: dict[str, npt.NDArray[Any]] = {name: store.dense(name) for name in store.dense_names()}
        head = head_role(config)
        # nothing bound to self: a cycle would keep the weights until they are collected
        self._logits = logits or partial(
            _exact_logits, pool, self._formats.of(head, None), self._dense[head], config.vocab_size
        )
        self._layers = range(config.num_layers)
        self._k = [0 if layer.ffn is None else layer.ffn.k for layer in config.layers]
        # one table of angles serves all layers: check_supported
        self._theta = next((layer.attention.rope.theta for layer in config.layers if layer.attention.rope), None)
        self._neurons_per_token = sum(layer.ffn.k * layer.ffn.width for layer in config.layers if layer.ffn is not None)
        self._mixers = [self._attention_layer(layer) for layer in self._layers]
        ffns = [self._ffn(layer) for layer in self._layers]
        self._forward = _kernels.Forward(pool, self._mixers, ffns, slots, predictor or {})

    def begin(self, spans: Sequence[Span]) -> Step:
        """Embed the tokens of each span, which follow those in its state."""
        c = self.config
        step = Step(spans, c.hidden_size, c.experts_per_token)
        ids = np.fromiter(chain.from_iterable(tokens for _, tokens in spans), np.int32, step.tokens)
        quant = self._formats.of(EMBEDDING, None)
        _kernels.embed(quant, self._dense[EMBEDDING], c.vocab_size, c.hidden_size, ids, step.x)
        places = zip(step.starts, step.counts, strict=True)
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64) for start, n in places])
        dim = c.layers[0].attention.head_dim
        step.cos = np.empty((step.tokens, dim // 2), np.float32)
        step.sin = np.empty_like(step.cos)
        if self._theta is not None:
            _kernels.rope_angles(positions, dim, self._theta, step.cos, step.sin)
        return step

    def run(
        self,
        step: Step,
        first: int,
        last: int,
        slot_table: npt.NDArray[np.int32],
        ahead: npt.NDArray[np.int32],
    ) -> Stop:
        """The layers from `first` on, without Python between them, as long as their experts are in slots; layer `last`
        is only routed. slot_table, ahead: `ExpertCache.slot_table`, `LookAhead.ahead`."""
        layer, why, live, used, (experts, pairs), guess = self._forward.run(
            first,
            last,
            step.x,
            step.normed,
            step.ids,
            step.weights,
            slot_table,
            ahead,
            [state.bound for state in step.sequences],
            step.starts,
            step.counts,
            step.cos,
            step.sin,
        )
        self.live_neurons += live
        route = None if why == _kernels.Forward.DONE else Route(*step.chosen(self._k[layer]), experts, pairs)
        return Stop(layer, used, route, guess if why == _kernels.Forward.GUESSED else None)

    def mix(self, step: Step, layer: int) -> None:
        """Attention, added to the states; its keys and values go into the caches."""
        caches = [state.bound[layer] for state in step.sequences]
        self._mixers[layer].forward(step.x, caches, step.starts, step.counts, step.cos, step.sin, step.normed)

    def guess(self, step: Step, source: int, target: int) -> tuple[list[int], list[int]]:
        """What layer `target` will choose, as its predictor says of the states after the attention of layer `source`;
        without one, as its router does: distinct experts, and the best rank that a token gives each."""
        return self._forward.guess(source, step.x, [target])[0]

    def compute(self, step: Step, layer: int, pairs: list[list[int]], slots: list[int]) -> None:
        """What the experts in these slots give the tokens that chose them; kept until `combine`."""
        self.live_neurons += self._forward.compute(layer, step.normed, pairs, slots)

    def combine(self, step: Step, layer: int) -> None:
        """Add up, in the router's order, what was computed."""
        self._forward.combine(layer, step.x, step.chosen(self._k[layer])[1])

    def logits(self, step: Step, rows: npt.NDArray[np.intp] | None) -> Floats:
        """[rows, V] of these rows of the states; None: of all."""
        self.neurons += step.tokens * self._neurons_per_token
        x = step.x if rows is None else step.x[rows]
        normed = np.empty_like(x)
        _kernels.rmsnorm(x, self._dense[FINAL_NORM], self.config.final_norm.eps, normed)
        return self._logits(normed)

    def release_scratch(self) -> None:
        """Free what a large step left; the next takes what it needs."""
        self.pool.release_scratch()
        self._forward.release()

    def _attention_layer(self, number: int) -> _kernels.AttentionLayer:
        layer, name = self.config.layers[number], f"layers.{number}."
        mixer, norm = layer.attention, layer.norms.before_mixer
        assert norm is not None
        q, k, v, o = (self._formats.of(f"{part}_proj", number) for part in "qkvo")
        return _kernels.AttentionLayer(
            self.pool,
            (q, k, v, o),
            self._dense[name + "input_layernorm"],
            self._dense[name + "q_proj"],
            self._dense[name + "k_proj"],
            self._dense[name + "v_proj"],
            self._dense[name + "o_proj"],
            self._dense[name + "post_attention_layernorm"],
            mixer.heads,
            mixer.kv_heads,
            mixer.head_dim,
            norm.eps,
            mixer.rope is not None,
            mixer.window,
        )

    def _ffn(self, number: int) -> _kernels.Ffn:
        layer = self.config.layers[number]
        ffn = layer.ffn
        assert ffn is not None and ffn.activation.kind != "clamped_swiglu"
        return _kernels.Ffn(
            self._formats.of_experts(number),
            self.config.hidden_size,
            ffn.width,
            ffn.activation.kind,
            ffn.gated,
            ffn.experts,
            ffn.k,
            None if ffn.router is None else ffn.router.score,
            None if ffn.router is None else self._dense[f"layers.{number}.{ROUTER}"],
        )


def _exact_logits(
    pool: _kernels.ThreadPool, quant: Quant, head: npt.NDArray[np.uint8], vocab_size: int, normed: Floats
) -> Floats:
    out = np.empty((len(normed), vocab_size), np.float32)
    _kernels.linear(pool, quant, head, vocab_size, normed.shape[1], normed, out)
    return out
