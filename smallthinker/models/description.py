"""What a model is, as data. Every layer is described in full; code asks a layer what it is, never a family's name.

Knows nothing about files, weights' formats or arithmetic: `reference.py` says what each value computes, a family's file
where it comes from, `tensors.py` which tensors it means. Written so that these fit as they are:

- llama, mistral, ministral, smollm: `Rope.scaling` (linear, llama3, YarnScaling), no positions where `rope` is None,
  queries that grow with their position (`Attention.growth`)
- qwen2, qwen3, qwen3_moe, olmoe: `Attention.bias`, `qk_norm` of each head or of the whole projection, `clip`
- mixtral, phi3, phimoe: `Rope.size` below the head's, LongRopeScaling, `Norm.kind` "layer"
- gemma2, 3, 4: `Norm.plus_one`, sandwich norms, softcaps, `embedding_scale`, a window a layer, keys used as values, a
  layer that reads another one's (`kv_of`), a dense network beside the experts (`Ffn.beside`)
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
from typing import Literal

from smallthinker.errors import ConfigError

BLOCK = 32
"""Columns of every matrix come in whole blocks of so many weights."""


@dataclass(frozen=True)
class Norm:
    """x / rms(x) times w, or ("layer") (x - mean) / deviation times w, plus a bias. plus_one: files have w - 1."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    has_weight: bool = True
    plus_one: bool = False
    bias: bool = False


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by the factor."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths divided by the factor, short ones kept, blended between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class YarnScaling:
    """A ramp between two correction dimensions (arXiv 2309.00071); cos and sin times attention_factor."""

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """A factor for each frequency, other ones for a sequence that exceeds original_context (arXiv 2402.13753). The
    engine chooses once: by the context that is planned."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """The first `size` numbers of a head are rotated, in pairs (i, i + size / 2) or (2i, 2i + 1), by position times
    theta ** (-2i / over); `over` is `size` unless a family divides by the whole head. turning: only the first so many
    pairs are; None: all."""

    theta: float
    size: int
    pairing: Literal["half", "interleaved"] = "half"
    over: int | None = None
    scaling: RopeScaling | None = None
    turning: int | None = None


@dataclass(frozen=True)
class Growth:
    """Queries times 1 + beta ln(1 + floor((position + offset) / every))."""

    beta: float
    every: int
    offset: int = 0


@dataclass(frozen=True)
class Attention:
    """Softmax attention over keys and values of past positions; query head h reads key head h * kv_heads // heads.

    window: positions that a query sees, itself included; chunk: it sees its own chunk of so many; 0 of either: all.
    scale: of query times key; None is head_dim ** -0.5. clip: what q, k and v are kept within, after their norms and
    before they are rotated; 0 is none. softcap: of the scores; 0 is none. values: "keys" computes no
    values of its own. gated: q_proj also gives a gate, and the output is multiplied by its sigmoid. kv_of: reads the
    keys and values of that layer.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int = 0
    chunk: int = 0
    scale: float | None = None
    qk_norm: Norm | None = None
    qk_norm_of: Literal["head", "projection"] = "head"
    v_norm: Norm | None = None
    bias: bool = False
    out_bias: bool = False
    clip: float = 0.0
    sinks: bool = False
    softcap: float = 0.0
    growth: Growth | None = None
    values: Literal["own", "keys"] = "own"
    gated: bool = False
    kv_of: int | None = None


@dataclass(frozen=True)
class LatentAttention:
    """Keys and values from one latent a position (arXiv 2405.04434). q_rank 0: queries straight from the input."""

    heads: int
    q_rank: int
    kv_rank: int
    nope_size: int
    rope: Rope
    value_size: int
    latent_norm: Norm
    scale: float | None = None
    bias: bool = False


@dataclass(frozen=True)
class GatedDeltaNet:
    """The gated delta rule (arXiv 2412.06464) behind a short convolution of q, k and v."""

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    conv_size: int
    norm: Norm


@dataclass(frozen=True)
class Mamba2:
    """A state space with scalar decays (arXiv 2405.21060) behind a short convolution. norm: of the gated output, over
    groups; None without one."""

    heads: int
    head_size: int
    groups: int
    state_size: int
    conv_size: int
    conv_bias: bool
    norm: Norm | None
    min_step: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class ShortConv:
    """C conv(B x) of three projections of the input."""

    size: int
    conv_size: int
    bias: bool = False


Mixer = Attention | LatentAttention | GatedDeltaNet | Mamba2 | ShortConv


@dataclass(frozen=True)
class Activation:
    """Of the gate, or of `up` where there is none. "clamped_swiglu" is (u + 1) g sigmoid(alpha g), both limited."""

    kind: Literal["relu", "silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"]
    limit: float = 0.0
    alpha: float = 0.0


@dataclass(frozen=True)
class Router:
    """Which k of the experts, and with which weights.

    reads: "residual" is the state before the layer's first norm, so that the experts are known before attention;
    "ffn_input" what the experts themselves read, "mixed" the same before its norm. norm: of what is read. logit_scale:
    of the product, before a bias. over: scores of "all" experts, or only of those "chosen" by logit.
    bias: none, part of the "logits", or added for the "choice" alone. groups: only experts of the best kept_groups are
    chosen. applied_to: the experts' output is multiplied by the weight, or their input.
    """

    experts: int
    k: int
    reads: Literal["residual", "ffn_input", "mixed"]
    score: Literal["softmax", "sigmoid"]
    over: Literal["all", "chosen"]
    normalise: bool
    bias: Literal["none", "logits", "choice"] = "none"
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0
    norm: Norm | None = None
    expert_scale: bool = False
    applied_to: Literal["output", "input"] = "output"
    logit_scale: float = 1.0


@dataclass(frozen=True)
class Beside:
    """after(ffn(before(x))) of the state x that the experts' norm reads, added to after_experts(what they give)."""

    ffn: Ffn
    before: Norm | None = None
    after: Norm | None = None
    after_experts: Norm | None = None


@dataclass(frozen=True)
class Ffn:
    """down(activation(gate) * up), or without a gate down(activation(up)); `width` of one expert, or of one slice.

    Without a router there are `slices` of that width, all used: a dense network that streams like experts do. shared:
    added to what the chosen experts give, times sigmoid(w x) if shared_gate. beside: a dense network that reads the
    state before this one.
    """

    width: int
    activation: Activation
    gated: bool = True
    bias: bool = False
    router: Router | None = None
    slices: int = 1
    shared: Ffn | None = None
    shared_gate: bool = False
    beside: Beside | None = None

    @property
    def experts(self) -> int:
        """Records that it has on disk."""
        return self.slices if self.router is None else self.router.experts

    @property
    def k(self) -> int:
        """Records that one token uses."""
        return self.slices if self.router is None else self.router.k


@dataclass(frozen=True)
class Norms:
    """Around a layer's two parts; None where there is none. parallel: the network reads what the mixer reads."""

    before_mixer: Norm | None
    before_ffn: Norm | None
    after_mixer: Norm | None = None
    after_ffn: Norm | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Layer:
    """x += residual_scale * mixer(norm(x)), then the same of the network. output_scale: the layer's result times one
    stored number."""

    mixer: Mixer | None
    ffn: Ffn | None
    norms: Norms
    residual_scale: float = 1.0
    output_scale: bool = False

    @property
    def attention(self) -> Attention:
        """The mixer, where it is known to be one."""
        assert isinstance(self.mixer, Attention), self.mixer
        return self.mixer

    @property
    def router(self) -> Router:
        """The network's, where it is known to have one."""
        assert self.ffn is not None and self.ffn.router is not None, self.ffn
        return self.ffn.router


@dataclass(frozen=True)
class Head:
    """Logits. tied: the embedding's matrix; softcap 0 is none."""

    tied: bool
    scale: float = 1.0
    softcap: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    bos: int | None
    eos: tuple[int, ...]


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

    def __post_init__(self) -> None:
        """Raises ConfigError where two values contradict each other, by the names that most configurations have."""
        for what, size in (("vocab_size", self.vocab_size), ("context", self.context), ("layers", len(self.layers))):
            _at_least_one(what, size)
        _blocks("hidden_size", self.hidden_size)
        if self.head.softcap < 0:
            raise ConfigError(f"head softcap: expected 0 (none) or more, found {self.head.softcap}")
        ids = [("eos_token_id", id) for id in self.tokens.eos]
        for key, id in ids if self.tokens.bos is None else [*ids, ("bos_token_id", self.tokens.bos)]:
            if id >= self.vocab_size:
                raise ConfigError(f"{key}: {id} is outside the vocabulary of {self.vocab_size}")
        for layer in self.layers:
            if isinstance(layer.mixer, Attention):
                _check_attention(layer.mixer)
            if layer.ffn is not None:
                _check_ffn(layer.ffn)

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


def _check_attention(mixer: Attention) -> None:
    for what, size in (("heads", mixer.heads), ("kv_heads", mixer.kv_heads), ("head_dim", mixer.head_dim)):
        _at_least_one(what, size)
    if mixer.heads % mixer.kv_heads:
        raise ConfigError(f"num_key_value_heads: {mixer.kv_heads} does not divide num_attention_heads {mixer.heads}")
    if mixer.head_dim % 2:
        raise ConfigError(f"head_dim: expected an even number (rotary pairs), found {mixer.head_dim}")
    if mixer.rope is not None and (mixer.rope.size % 2 or mixer.rope.size > mixer.head_dim):
        raise ConfigError(
            f"rotary dimensions: expected an even number of at most {mixer.head_dim} (head_dim), found "
            f"{mixer.rope.size}"
        )
    if mixer.rope is not None:
        _check_rope(mixer.rope)
    for what, limit in (("clip", mixer.clip), ("softcap", mixer.softcap)):
        if limit < 0:
            raise ConfigError(f"{what}: expected 0 (none) or more, found {limit}")
    if mixer.growth is not None:
        _at_least_one("growth every", mixer.growth.every)
    _blocks("head_dim times num_attention_heads", mixer.heads * mixer.head_dim)


def _check_rope(rope: Rope) -> None:
    """What could not be computed with: division by zero, logarithms of nothing."""
    scaling = rope.scaling
    _at_least_one("rotary dimensions", rope.size)
    _above("rope theta", rope.theta, 1.0)
    if rope.turning is not None and not 0 <= rope.turning <= rope.size // 2:
        raise ConfigError(f"rope turning: expected 0 to {rope.size // 2} pairs, found {rope.turning}")
    if scaling is None:
        return
    if isinstance(scaling, LongRopeScaling):
        for what, factors in (("short factors", scaling.short), ("long factors", scaling.long)):
            if len(factors) != rope.size // 2:
                raise ConfigError(f"rope scaling: expected {rope.size // 2} {what}, found {len(factors)}")
            _above(f"rope scaling {what}", min(factors), 0.0)
        return
    _above("rope scaling factor", scaling.factor, 0.0)
    if isinstance(scaling, Llama3Scaling):
        _above("rope scaling high_freq_factor", scaling.high_freq_factor, scaling.low_freq_factor)
    if isinstance(scaling, YarnScaling):
        _at_least_one("rope scaling original_context", scaling.original_context)
        _above("rope scaling beta_slow", scaling.beta_slow, 0.0)
        _above("rope scaling beta_fast", scaling.beta_fast, 0.0)


def _above(what: str, found: float, least: float) -> None:
    if not found > least:
        raise ConfigError(f"{what}: expected more than {least:g}, found {found:g}")


def _check_ffn(ffn: Ffn) -> None:
    _blocks("width of a feed-forward network", ffn.width)
    _at_least_one("slices", ffn.slices)
    activation = ffn.activation
    if activation.kind == "clamped_swiglu" and not (ffn.gated and activation.limit > 0 and activation.alpha > 0):
        raise ConfigError(
            "clamped_swiglu: expected a gate, a limit and an alpha above 0, found "
            f"{activation.limit}, {activation.alpha}"
        )
    router = ffn.router
    if router is not None:
        _at_least_one("experts", router.experts)
        _at_least_one("experts per token", router.k)
        _at_least_one("groups of experts", router.groups)
        _at_least_one("kept groups of experts", router.kept_groups)
    if router is not None and router.k > router.experts:
        raise ConfigError(f"experts per token: {router.k} is more than the {router.experts} experts of a layer")
    if router is not None and router.groups > 1:
        size, rest = divmod(router.experts, router.groups)
        if rest or size < 2:  # a group is as good as its best two
            raise ConfigError(
                f"groups of experts: expected a divisor of {router.experts} experts that leaves two or more to each, "
                f"found {router.groups}"
            )
        if router.k > router.kept_groups * size:
            raise ConfigError(
                f"experts per token: {router.k} is more than the {router.kept_groups * size} of the kept groups"
            )
    if router is not None and router.kept_groups > router.groups:
        raise ConfigError(f"kept groups of experts: {router.kept_groups} is more than the {router.groups} groups")
    if ffn.shared is not None:
        _check_ffn(ffn.shared)
    if ffn.beside is not None:
        _check_ffn(ffn.beside.ffn)


def _at_least_one(what: str, size: int) -> None:
    if size < 1:
        raise ConfigError(f"{what}: expected at least 1, found {size}")


def _blocks(what: str, size: int) -> None:
    _at_least_one(what, size)
    if size % BLOCK:
        raise ConfigError(f"{what}: expected a multiple of {BLOCK} (one weight block), found {size}")
