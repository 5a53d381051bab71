"""What a model is, as data. Every layer is described in full; code asks a layer what it is, never a family's name.

Knows nothing about files, weights' formats or arithmetic: `reference.py` says what each value computes, a family's file
where it comes from, `tensors.py` which tensors it means. Written so that these fit as they are:

- llama, mistral, ministral, smollm: `Rope.scaling` (linear, llama3, YarnScaling), no positions where `rope` is None,
  queries that grow with their position (`Attention.growth`)
- qwen2, qwen3, qwen3_moe, olmoe: `Attention.bias`, `qk_norm` of each head or of the whole projection, `clip`
- mixtral, phi3, phimoe: `Rope.size` below the head's, LongRopeScaling, `Norm.kind` "layer"
- gemma2, 3, 4: `Norm.plus_one`, sandwich norms, softcaps, `embedding_scale`, a window a layer, keys used as values, a
  layer that reads another one's (`kv_of`), a dense network beside the experts (`Ffn.beside`), an embedding for each
  layer (`LayerInputs`, `InputGate`)
- gpt_oss: `sinks`, biases, clamped SwiGLU, scores after top-k
- granite, command-r, falcon: multipliers, parallel networks (`Norms.parallel`)
- llama4: interleaved pairs, chunked attention, weights on the experts' input, shared experts
- deepseek, glm4: `LatentAttention`, groups and a bias that only chooses, `Router.scale`, dense layers first
- qwen3_next, nemotron_h, falcon_h1, lfm2: recurrent mixers, gated outputs, ReLU squared, a gate of the shared expert

Shape letters: d hidden, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from smallthinker.errors import ConfigError
from smallthinker.models.part_checks import at_least_one, check_attention, check_blocks, check_ffn
from smallthinker.models.parts import (
    BLOCK,
    TILE,
    Activation,
    Attention,
    Beside,
    Ffn,
    GatedDeltaNet,
    Growth,
    Head,
    InputGate,
    LatentAttention,
    Layer,
    LayerInputs,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Mamba2,
    Mixer,
    Norm,
    Norms,
    Rope,
    RopeScaling,
    Router,
    ShortConv,
    SpecialTokens,
    YarnScaling,
)

__all__ = [
    "BLOCK",
    "TILE",
    "Activation",
    "Attention",
    "Beside",
    "Ffn",
    "GatedDeltaNet",
    "Growth",
    "Head",
    "InputGate",
    "LatentAttention",
    "Layer",
    "LayerInputs",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Mamba2",
    "Mixer",
    "Model",
    "Norm",
    "Norms",
    "Rope",
    "RopeScaling",
    "Router",
    "ShortConv",
    "SpecialTokens",
    "YarnScaling",
]


@dataclass(frozen=True)
class Model:
    """`context`: positions that it was made for. `family`: whose file names its tensors and writes its config.json;
    nothing that is computed asks for it."""

    family: str
    vocab_size: int
    hidden_size: int
    context: int
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Head
    tokens: SpecialTokens
    embedding_scale: float = 1.0
    layer_inputs: LayerInputs | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError where two values contradict each other, by the names that most configurations have."""
        for what, size in (("vocab_size", self.vocab_size), ("context", self.context), ("layers", len(self.layers))):
            at_least_one(what, size)
        check_blocks("hidden_size", self.hidden_size)
        if self.head.softcap < 0:
            raise ConfigError(f"head softcap: expected 0 (none) or more, found {self.head.softcap}")
        ids = [("eos_token_id", id) for id in self.tokens.eos]
        for key, id in ids if self.tokens.bos is None else [*ids, ("bos_token_id", self.tokens.bos)]:
            if id >= self.vocab_size:
                raise ConfigError(f"{key}: {id} is outside the vocabulary of {self.vocab_size}")
        for layer in self.layers:
            if isinstance(layer.mixer, Attention):
                check_attention(layer.mixer)
            if layer.ffn is not None:
                check_ffn(layer.ffn)
            if layer.input_gate is not None and self.layer_inputs is None:
                raise ConfigError("input_gate: expected layer_inputs of the model, found none")
        if self.layer_inputs is not None:
            at_least_one("layer_inputs size", self.layer_inputs.size)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def experts_per_layer(self) -> int:
        """Of the layer that has most."""
        return max(0 if layer.ffn is None else layer.ffn.experts for layer in self.layers)

    @cached_property
    def experts_per_token(self) -> int:
        """Of the layer that uses most."""
        return max(0 if layer.ffn is None else layer.ffn.k for layer in self.layers)

    @cached_property
    def certain_layers(self) -> tuple[int, ...]:
        """Those that have slices and no router: all of them is wanted, always."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.ffn and layer.ffn.router is None)

    @cached_property
    def layers_that_mix_first(self) -> tuple[int, ...]:
        """Those whose routers read what the mixer gives, so that their experts are known only after it."""
        routers = [(number, layer.ffn.router) for number, layer in enumerate(self.layers) if layer.ffn]
        return tuple(number for number, router in routers if router and router.reads != "residual")

    @cached_property
    def routed_layers(self) -> tuple[int, ...]:
        """Those with a router."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.ffn and layer.ffn.router)

    def check_routed(self, what: str) -> None:
        """For who makes tables of the routed layers' experts. Raises ConfigError for a dense model, and where routed
        layers differ in their number of experts."""
        if not self.routed_layers:
            raise ConfigError(f"{what}: this model is dense: no layer has a router, so there is nothing to choose")
        found = {(self.used_of_layers[layer], self.experts_of_layers[layer]) for layer in self.routed_layers}
        if len(found) > 1:
            kinds = ", ".join(f"{k} of {experts}" for k, experts in sorted(found))
            raise ConfigError(f"{what}: expected as many experts in every routed layer, found layers that use {kinds}")

    def check_routers(self, what: str) -> None:
        """The same for who wants a router in every layer."""
        self.check_routed(what)
        if len(self.routed_layers) < self.num_layers:
            dense = next(layer for layer in range(self.num_layers) if layer not in self.routed_layers)
            raise ConfigError(f"{what}: expected a router in every layer, found none in layer {dense}")

    @cached_property
    def ffn_width(self) -> int:
        """Of the widest expert: a record's place on disk and in memory is as large as its."""
        return max(0 if layer.ffn is None else layer.ffn.width for layer in self.layers)

    @cached_property
    def experts_of_layers(self) -> tuple[int, ...]:
        """Experts or slices of each layer; a record's number counts them layer after layer."""
        return tuple(0 if layer.ffn is None else layer.ffn.experts for layer in self.layers)

    @cached_property
    def used_of_layers(self) -> tuple[int, ...]:
        """Of each layer's experts or slices, how many one token uses."""
        return tuple(0 if layer.ffn is None else layer.ffn.k for layer in self.layers)

    @property
    def records_are(self) -> str:
        """What people call them."""
        if not self.certain_layers:
            return "experts"
        return "experts and slices" if self.routed_layers else "slices"

    @cached_property
    def num_records(self) -> int:
        """Experts and slices of all layers together."""
        return sum(self.experts_of_layers)
