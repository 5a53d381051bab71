"""Which tensors a model has: the one list that conversion, store, plan, forward pass, synth and inspect read.

Roles are the names that a store uses. Knows nothing about files or about how weights are packed.

Shape letters: d hidden, H query heads, K key/value heads, D head_dim, E experts of a layer, F width of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from smallthinker.models.description import (
    Attention,
    Ffn,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    Mamba2,
    Mixer,
    Model,
    Norm,
    ShortConv,
)

EMBEDDING, HEAD, FINAL_NORM = "embed_tokens", "lm_head", "norm"
ROUTER, ROUTER_BIAS = "router", "router_bias"
GATE, UP, DOWN = "gate", "up", "down"
EXPERT_ROLES = (GATE, UP, DOWN)
"""Of a layer's feed-forward network, with all its experts (or slices): [E, F, d], [E, F, d], [E, d, F]."""
EXPERT_BIASES = tuple(f"{role}_bias" for role in EXPERT_ROLES)
"""And, where there are such, [E, F], [E, F], [E, d]."""
LAYER_EMBEDDINGS = "layer_embeddings"
"""[V, layers * size]: of each token a row, looked up on disk."""
LAYER_INPUTS_PROJ, LAYER_INPUTS_NORM = "layer_inputs_proj", "layer_inputs_norm"
INPUT_GATE, INPUT_PROJ, INPUT_OUT_NORM = "input_gate", "input_proj", "input_out_norm"
BESIDE_NORMS = ("beside_norm", "beside_out_norm", "experts_out_norm")
"""Before and after the network beside the experts, and of what they give."""


def head_role(model: Model) -> str:
    """Of the matrix that gives logits."""
    return EMBEDDING if model.head.tied else HEAD


class Tensor(NamedTuple):
    """A matrix [rows, cols], a vector [size], or all experts' matrices of one role [E, rows, cols]. layer: None for the
    model's own."""

    role: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.role if self.layer is None else f"layers.{self.layer}.{self.role}"

    @property
    def is_expert(self) -> bool:
        return self.role in EXPERT_ROLES or self.role in EXPERT_BIASES

    @property
    def parts(self) -> list[tuple[str, tuple[int, ...]]]:
        """Its name and shape, or of each expert's matrix "layers.3.gate.5"."""
        if not self.is_expert:
            return [(self.name, self.shape)]
        return [(f"{self.name}.{expert}", self.shape[1:]) for expert in range(self.shape[0])]


def tensors(model: Model) -> list[Tensor]:
    """All of them, in the order in which a store has them."""
    return [*dense_tensors(model), *table_tensors(model), *expert_tensors(model)]


def table_tensors(model: Model) -> Iterator[Tensor]:
    """Of which a token uses one row."""
    if model.layer_inputs is not None:
        yield Tensor(LAYER_EMBEDDINGS, None, (model.vocab_size, model.num_layers * model.layer_inputs.size))


def dense_tensors(model: Model) -> Iterator[Tensor]:
    """What every token uses, and the embedding."""
    yield Tensor(EMBEDDING, None, (model.vocab_size, model.hidden_size))
    if not model.head.tied:
        yield Tensor(HEAD, None, (model.vocab_size, model.hidden_size))
    if model.head.bias:
        yield Tensor("lm_head_bias", None, (model.vocab_size,))
    for role, shape in _norm(FINAL_NORM, model.final_norm, model.hidden_size):
        yield Tensor(role, None, shape)
    inputs = model.layer_inputs
    if inputs is not None:
        yield Tensor(LAYER_INPUTS_PROJ, None, (model.num_layers * inputs.size, model.hidden_size))
        for role, shape in _norm(LAYER_INPUTS_NORM, inputs.norm, inputs.size):
            yield Tensor(role, None, shape)
    for number, layer in enumerate(model.layers):
        for role, shape in _layer(layer, model.hidden_size, 0 if inputs is None else inputs.size):
            yield Tensor(role, number, shape)


def expert_tensors(model: Model) -> Iterator[Tensor]:
    """What a router chooses from, and the slices of dense networks."""
    for number, layer in enumerate(model.layers):
        ffn = layer.ffn
        if ffn is not None:
            up, down = (ffn.experts, ffn.width, model.hidden_size), (ffn.experts, model.hidden_size, ffn.width)
            for role, shape in ((GATE, up), (UP, up), (DOWN, down)):
                if role != GATE or ffn.gated:
                    yield Tensor(role, number, shape)
            for role, (rows, size) in zip(EXPERT_BIASES, (up[:2], up[:2], down[:2]), strict=True):
                if ffn.bias and (role != EXPERT_BIASES[0] or ffn.gated):
                    yield Tensor(role, number, (rows, size))


def num_parameters(model: Model) -> int:
    """Weights of the whole model; a tied head counts once."""
    return sum(prod(tensor.shape) for tensor in tensors(model))


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _norm(role: str, norm: Norm | None, size: int) -> Shapes:
    if norm is not None and norm.has_weight:
        yield role, (size,)
        if norm.bias:
            yield f"{role}_bias", (size,)


def _linear(role: str, rows: int, cols: int, bias: bool = False) -> Shapes:
    yield role, (rows, cols)
    if bias:
        yield f"{role}_bias", (rows,)


def _layer(layer: Layer, d: int, given: int) -> Shapes:
    """given: how many numbers of each token."""
    norms, ffn = layer.norms, layer.ffn
    yield from _norm("input_layernorm", norms.before_mixer, d)
    yield from _norm("attention_out_norm", norms.after_mixer, d)
    yield from _norm("post_attention_layernorm", norms.before_ffn, d)
    yield from _norm("ffn_out_norm", norms.after_ffn, d)
    if ffn is not None:
        yield from _beside_experts(ffn, d)
    if layer.mixer is not None:
        yield from _mixer(layer.mixer, d)
    if layer.input_gate is not None:
        yield INPUT_GATE, (given, d)
        yield INPUT_PROJ, (d, given)
        yield from _norm(INPUT_OUT_NORM, layer.input_gate.after, d)
    if layer.output_scale:
        yield "output_scale", (1,)


def _beside_experts(ffn: Ffn, d: int) -> Shapes:
    """What of a feed-forward network every token uses."""
    router = ffn.router
    if router is not None:
        yield from _norm("router_norm", router.norm, d)
        yield ROUTER, (router.experts, d)
        if router.bias != "none":
            yield ROUTER_BIAS, (router.experts,)
        if router.expert_scale:
            yield "router_expert_scale", (router.experts,)
    beside = ffn.beside
    if beside is not None:
        for role, norm in zip(BESIDE_NORMS, (beside.before, beside.after, beside.after_experts), strict=True):
            yield from _norm(role, norm, d)
    for prefix, other in (("shared", ffn.shared), ("beside", None if beside is None else beside.ffn)):
        if other is not None:
            for role in EXPERT_ROLES:
                if role != GATE or other.gated:
                    rows, cols = (d, other.width) if role == DOWN else (other.width, d)
                    yield from _linear(f"{prefix}_{role}", rows, cols, other.bias)
    if ffn.shared_gate:
        yield "shared_expert_gate", (1, d)


def _mixer(mixer: Mixer, d: int) -> Shapes:
    if isinstance(mixer, Attention):
        yield from _attention(mixer, d)
    elif isinstance(mixer, LatentAttention):
        yield from _latent(mixer, d)
    elif isinstance(mixer, GatedDeltaNet):
        keys, values = mixer.key_heads * mixer.key_size, mixer.value_heads * mixer.value_size
        yield "qkv_proj", (2 * keys + values, d)
        yield "z_proj", (values, d)
        yield "b_proj", (mixer.value_heads, d)
        yield "a_proj", (mixer.value_heads, d)
        yield "conv", (2 * keys + values, mixer.conv_size)
        yield "a_log", (mixer.value_heads,)
        yield "dt_bias", (mixer.value_heads,)
        yield from _norm("mixer_norm", mixer.norm, mixer.value_size)
        yield "o_proj", (d, values)
    elif isinstance(mixer, Mamba2):
        inner, states = mixer.heads * mixer.head_size, mixer.groups * mixer.state_size
        yield from _linear("in_proj", 2 * inner + 2 * states + mixer.heads, d, mixer.bias)
        yield from _linear("conv", inner + 2 * states, mixer.conv_size, mixer.conv_bias)
        for role in ("a_log", "dt_bias", "skip"):
            yield role, (mixer.heads,)
        yield from _norm("mixer_norm", mixer.norm, inner)
        yield from _linear("o_proj", d, inner, mixer.bias)
    elif isinstance(mixer, ShortConv):
        yield from _linear("in_proj", 3 * mixer.size, d, mixer.bias)
        yield from _linear("conv", mixer.size, mixer.conv_size, mixer.bias)
        yield from _linear("o_proj", d, mixer.size, mixer.bias)


def _attention(mixer: Attention, d: int) -> Shapes:
    q, kv = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
    yield from _linear("q_proj", q * (2 if mixer.gated else 1), d, mixer.bias)
    if mixer.kv_of is None:
        yield from _linear("k_proj", kv, d, mixer.bias)
        if mixer.values == "own":
            yield from _linear("v_proj", kv, d, mixer.bias)
    yield from _linear("o_proj", d, q, mixer.out_bias)
    of_heads = mixer.qk_norm_of == "head"
    yield from _norm("q_norm", mixer.qk_norm, mixer.head_dim if of_heads else q)
    if mixer.kv_of is None:
        yield from _norm("k_norm", mixer.qk_norm, mixer.head_dim if of_heads else kv)
        yield from _norm("v_norm", mixer.v_norm, mixer.head_dim)
    if mixer.sinks:
        yield "sinks", (mixer.heads,)


def _latent(mixer: LatentAttention, d: int) -> Shapes:
    q = mixer.heads * (mixer.nope_size + mixer.rope.size)
    if mixer.q_rank:
        yield from _linear("q_a_proj", mixer.q_rank, d, mixer.bias)
        yield from _norm("q_a_norm", mixer.latent_norm, mixer.q_rank)
        yield "q_b_proj", (q, mixer.q_rank)
    else:
        yield "q_proj", (q, d)
    yield from _linear("kv_a_proj", mixer.kv_rank + mixer.rope.size, d, mixer.bias)
    yield from _norm("kv_a_norm", mixer.latent_norm, mixer.kv_rank)
    yield "kv_b_proj", (mixer.heads * (mixer.nope_size + mixer.value_size), mixer.kv_rank)
    yield from _linear("o_proj", d, mixer.heads * mixer.value_size, mixer.bias)
