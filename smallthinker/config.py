"""Model configuration: one frozen dataclass from a Hugging Face config.json.

Owns the meaning of every key of the published configs and of absent ones. Knows nothing about files other than
config.json, and nothing about stores, memory or kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smallthinker.errors import ConfigError, shown
from smallthinker.files import parse_json

ARCHITECTURE = "SmallThinkerForCausalLM"

# Upper bounds keep a hostile file from asking for absurd allocations; each is over ten times the published models.
_LIMITS = {
    "hidden_size": 65_536,
    "num_hidden_layers": 1_024,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 1_024,
    "moe_num_primary_experts": 4_096,
    "moe_num_active_primary_experts": 256,
    "moe_ffn_hidden_size": 65_536,
    "vocab_size": 4_194_304,
    "max_position_embeddings": 16_777_216,
    "sliding_window_size": 16_777_216,
}

# Keys that change nothing in the forward pass. Anything else that we don't know is an error: a key that we ignored
# could mean another model.
_IGNORED = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    "initializer_range",
    "max_length",
    "model_name",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "repetition_penalty",
    "router_aux_loss_coef",
    "temperature",
    "tokenizer_class",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of one SmallThinker model. Names are those of the checkpoint's config.json.

    `use_rope[l]` and `use_window[l]` say per layer whether q and k are rotated and whether attention is limited to
    the last `sliding_window_size` positions. `router_softmax` picks softmax over the chosen logits (21B) instead of
    normalised sigmoids (4B).
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    moe_num_primary_experts: int
    moe_num_active_primary_experts: int
    moe_ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    use_rope: tuple[bool, ...]
    use_window: tuple[bool, ...]
    sliding_window_size: int
    router_softmax: bool
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        """Read a config.json. Raises ConfigError, with the path and the key."""
        path = Path(path)
        try:
            raw = parse_json(path.read_bytes())
        except OSError as e:
            raise ConfigError(f"{path}: cannot read the model configuration: {e.strerror or e}") from e
        except ValueError as e:
            raise ConfigError(f"{path}: not valid JSON: {e}") from e
        try:
            return cls.from_dict(raw)
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from None

    @classmethod
    def from_dict(cls, raw: Any) -> ModelConfig:
        """Build from the parsed config.json. Raises ConfigError, naming the key."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"expected a JSON object, found {type(raw).__name__}")
        keys = _Keys(raw)
        architectures = raw.get("architectures")
        if architectures is not None and architectures != [ARCHITECTURE]:
            raise ConfigError(f"architectures: expected ['{ARCHITECTURE}'], found {architectures!r}")
        if architectures is None and raw.get("model_type") != "smallthinker":
            raise ConfigError(f"architectures: missing; expected ['{ARCHITECTURE}']")

        layers = keys.positive("num_hidden_layers")
        heads = keys.positive("num_attention_heads")
        hidden = keys.positive("hidden_size")
        if raw.get("head_dim") is None and hidden % heads:
            raise ConfigError(f"head_dim: missing, and hidden_size {hidden} is not a multiple of {heads} heads")
        use_window = keys.layout("sliding_window_layout", layers, default=False)
        config = cls(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys.positive("num_key_value_heads", default=heads),
            head_dim=keys.positive("head_dim", default=hidden // heads),
            moe_num_primary_experts=keys.positive("moe_num_primary_experts"),
            moe_num_active_primary_experts=keys.positive("moe_num_active_primary_experts"),
            moe_ffn_hidden_size=keys.positive("moe_ffn_hidden_size"),
            vocab_size=keys.positive("vocab_size"),
            max_position_embeddings=keys.positive("max_position_embeddings"),
            rms_norm_eps=keys.number("rms_norm_eps", default=1e-6),
            rope_theta=keys.number("rope_theta", default=1.5e6),
            use_rope=keys.layout("rope_layout", layers, default=True),
            use_window=use_window,
            sliding_window_size=keys.positive("sliding_window_size", default=None if any(use_window) else 4096),
            router_softmax=keys.flag("moe_primary_router_apply_softmax", default=False),
            tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
            bos_token_id=keys.token("bos_token_id"),
            eos_token_ids=keys.tokens("eos_token_id"),
        )
        keys.only("hidden_act", "relu")
        keys.only("norm_topk_prob", True)
        keys.only("rope_scaling", None)
        keys.only("moe_enable_secondary_experts", False)
        keys.only("moe_enable_early_router", True)
        keys.reject_unknown()
        config._check_relations()
        return config

    def _check_relations(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads: {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.moe_num_active_primary_experts > self.moe_num_primary_experts:
            raise ConfigError(
                f"moe_num_active_primary_experts: {self.moe_num_active_primary_experts} is more than the "
                f"{self.moe_num_primary_experts} experts of moe_num_primary_experts"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim: expected an even number (rotary pairs), found {self.head_dim}")
        for key in ("hidden_size", "moe_ffn_hidden_size"):
            if getattr(self, key) % 32:
                raise ConfigError(f"{key}: expected a multiple of 32 (one weight block), found {getattr(self, key)}")
        if self.num_attention_heads * self.head_dim % 32:
            raise ConfigError(
                f"head_dim: num_attention_heads * head_dim must be a multiple of 32, "
                f"found {self.num_attention_heads * self.head_dim}"
            )
        ids = [("eos_token_id", t) for t in self.eos_token_ids]
        if self.bos_token_id is not None:
            ids.append(("bos_token_id", self.bos_token_id))
        for key, token in ids:
            if token >= self.vocab_size:
                raise ConfigError(f"{key}: {token} is outside the vocabulary of {self.vocab_size}")

    def to_dict(self) -> dict[str, Any]:
        """The config.json of a checkpoint with this configuration; `from_dict` gives back an equal config."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "smallthinker",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "moe_num_primary_experts": self.moe_num_primary_experts,
            "moe_num_active_primary_experts": self.moe_num_active_primary_experts,
            "moe_ffn_hidden_size": self.moe_ffn_hidden_size,
            "moe_primary_router_apply_softmax": self.router_softmax,
            "norm_topk_prob": True,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rope_layout": [int(flag) for flag in self.use_rope],
            "sliding_window_layout": [int(flag) for flag in self.use_window],
            "sliding_window_size": self.sliding_window_size,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids),
        }

    def window(self, layer: int) -> int:
        """Positions that a query of this layer sees, itself included; 0 means all of them."""
        return self.sliding_window_size if self.use_window[layer] else 0

    @property
    def gating(self) -> Literal["softmax", "sigmoid"]:
        return "softmax" if self.router_softmax else "sigmoid"

    @property
    def num_experts_total(self) -> int:
        """Experts of all layers together."""
        return self.num_hidden_layers * self.moe_num_primary_experts

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, norms and router included; a tied head counts once."""
        d, ffn, dim = self.hidden_size, self.moe_ffn_hidden_size, self.head_dim
        attention = d * dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        experts = self.moe_num_primary_experts * (3 * d * ffn + d)
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * (attention + experts + 2 * d) + embeddings + d


class _Keys:
    """Typed look-ups in the raw dictionary that remember which keys were used."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.seen = set(_IGNORED)

    def _get(self, key: str) -> Any:
        self.seen.add(key)
        return self.raw.get(key)

    def positive(self, key: str, default: int | None = None) -> int:
        value = self._get(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{key}: missing; expected a positive integer")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LIMITS[key]:
            raise ConfigError(f"{key}: expected an integer from 1 to {_LIMITS[key]}, found {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{key}: expected a positive number, found {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: expected true or false, found {value!r}")
        return value

    def layout(self, key: str, layers: int, default: bool) -> tuple[bool, ...]:
        value = self._get(key)
        if value is None:
            return (default,) * layers
        if not isinstance(value, list) or any(type(v) not in (int, bool) or v not in (0, 1) for v in value):
            raise ConfigError(f"{key}: expected a list of 0 and 1, found {shown(value)}")
        if len(value) != layers:
            raise ConfigError(f"{key}: expected {layers} entries (num_hidden_layers), found {len(value)}")
        return tuple(bool(v) for v in value)

    def token(self, key: str) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{key}: expected a token id, found {shown(value)}")
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        value = self._get(key)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
            raise ConfigError(f"{key}: expected a token id or a list of them, found {shown(value)}")
        return tuple(values)

    def only(self, key: str, supported: Any) -> None:
        """Keys with one value that this engine implements; absent means that value."""
        value = self._get(key)
        if value is not None and (value != supported or type(value) is not type(supported)):
            raise ConfigError(f"{key}: only {supported!r} is supported, found {shown(value)}")

    def reject_unknown(self) -> None:
        unknown = sorted(set(self.raw) - self.seen)
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown key; this engine can't tell what it changes in the model")
