"""The parts of which `description.py` makes a model: norms, rotary positions, mixers, networks, routers.

Owns what a part can be and what each of its values means. Knows nothing about whether values fit together
(`part_checks.py`) or what computes them (`reference.py`).

Shape letters: d hidden, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BLOCK, TILE = 32, 16
"""Columns of a matrix come in whole blocks of so many weights. Neurons of a network need only be whole tiles of so many
rows: where they are no blocks, `down` keeps numbers."""


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
class LayerInputs:
    """What each layer is given of each token: `size` numbers, scale * (norm(projection_scale * P x) + embedding_scale *
    E[token]), of the embedded token x and of a table E that has a row of all layers' numbers for each token."""

    size: int
    norm: Norm
    embedding_scale: float = 1.0
    projection_scale: float = 1.0
    scale: float = 1.0


@dataclass(frozen=True)
class InputGate:
    """x += after(W(activation(G x) * what the layer is given of the token)), last of a layer."""

    activation: Activation
    after: Norm | None = None


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
    """x += residual_scale * mixer(norm(x)), then the same of the network. input_gate: and then what it is given of the
    token, of a model with `layer_inputs`. output_scale: the layer's result times one stored number."""

    mixer: Mixer | None
    ffn: Ffn | None
    norms: Norms
    residual_scale: float = 1.0
    input_gate: InputGate | None = None
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
