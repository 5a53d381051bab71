"""Model configuration: one frozen dataclass from a Hugging Face config.json.

Owns the meaning of every key of the published configs, of those that transformers 4 and 5 add when they save one again,
and of absent ones. Knows nothing about files other than config.json, and nothing about stores, memory or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smallthinker.config_keys import Keys
from smallthinker.errors import ConfigError, shown
from smallthinker.files import parse_json, read_small

ARCHITECTURE = "SmallThinkerForCausalLM"
MODEL_TYPE = "smallthinker"

# What absent keys mean: the defaults of the published configuration class, which are the 4B base model's.
_ABSENT: Mapping[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 32,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "moe_num_primary_experts": 32,
    "moe_num_active_primary_experts": 4,
    "moe_ffn_hidden_size": 768,
    "vocab_size": 151_936,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window_size": 4096,
    "moe_primary_router_apply_softmax": False,
    "tie_word_embeddings": True,
}
_ABSENT_ROPE_THETA, _ABSENT_ROPE_THETA_IN_STORES = 1e6, 1.5e6
_ABSENT_BOS, _ABSENT_EOS = 151_643, (151_643, 151_645)
# What they meant to those who wrote stores before, config.json as it came: a store means the same for ever.
_ABSENT_IN_STORES: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}

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
_FILE_FACTS = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attn_implementation",
    "auto_map", "dtype", "experts_implementation", "initializer_range", "model_name", "name_or_path", "tokenizer_class",
    "torch_dtype", "transformers_version",
}  # fmt: skip
_TRAINING_AND_TASKS = {
    "attention_dropout", "chunk_size_feed_forward", "dense_ffn_hidden_size", "finetuning_task",
    "gradient_checkpointing", "id2label", "is_decoder", "label2id", "moe_num_secondary_experts",
    "moe_secondary_expert_size", "num_labels", "output_attentions", "output_hidden_states", "output_router_logits",
    "prefix", "problem_type", "profile_sparsity", "return_dict", "router_aux_loss_coef", "task_specific_params",
    "tf_legacy_loss", "tie_encoder_decoder", "tie_last_hidden_states", "torchscript", "use_bfloat16", "use_cache",
}  # fmt: skip
# transformers 4 keeps these in config.json too. A request says how it samples.
_SAMPLING = {
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "pad_token_id", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
_IGNORED = _FILE_FACTS | _TRAINING_AND_TASKS | _SAMPLING

# Keys with one value that this engine implements; absent or null means that value.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("relu",),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "moe_enable_early_router": (True,),
    "moe_enable_secondary_experts": (False,),
    "moe_shared_primary_experts": (0,),
    "norm_topk_prob": (True,),
    "partial_rotary_factor": (1.0, 1),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "quantization_config": (None,),
    "use_qk_norm": (False,),
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
    def from_json(cls, path: str | Path, *, in_store: bool = False) -> ModelConfig:
        """Read a config.json, a checkpoint's or a store's. Raises ConfigError, with the path and the key."""
        path = Path(path)
        try:
            raw = parse_json(read_small(path))
        except OSError as e:
            raise ConfigError(f"{path}: cannot read the model configuration: {e.strerror or e}") from e
        except ValueError as e:
            raise ConfigError(f"{path}: not valid JSON: {e}") from e
        try:
            return cls.from_dict(raw, in_store=in_store)
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from None

    @classmethod
    def from_dict(cls, raw: Any, *, in_store: bool = False) -> ModelConfig:
        """Build from the parsed config.json. Raises ConfigError, naming the key."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"expected a JSON object, found {type(raw).__name__}")
        if in_store:
            raw = {**_ABSENT_IN_STORES, **{key: value for key, value in raw.items() if value is not None}}
        _check_architecture(raw)
        keys = Keys({**_ABSENT, **raw}, _IGNORED | {"architectures", "model_type"}, _LIMITS)
        layers, hidden = keys.positive("num_hidden_layers"), keys.positive("hidden_size")
        heads, vocab = keys.positive("num_attention_heads"), keys.positive("vocab_size")
        experts, active = keys.positive("moe_num_primary_experts"), keys.positive("moe_num_active_primary_experts")
        ffn = keys.positive("moe_ffn_hidden_size")
        if keys.raw["head_dim"] is None and hidden % heads:
            raise ConfigError(f"head_dim: missing, and hidden_size {hidden} is not a multiple of {heads} heads")
        use_window = keys.layout("sliding_window_layout", layers, absent=False)
        window = keys.positive("sliding_window_size")
        bos, eos = keys.token("bos_token_id", _ABSENT_BOS, vocab), keys.tokens("eos_token_id", _ABSENT_EOS, vocab)
        config = cls(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys.positive("num_key_value_heads", null=heads),
            head_dim=keys.positive("head_dim", null=hidden // heads),
            moe_num_primary_experts=experts,
            moe_num_active_primary_experts=active,
            moe_ffn_hidden_size=ffn,
            vocab_size=vocab,
            max_position_embeddings=keys.positive("max_position_embeddings"),
            rms_norm_eps=keys.number("rms_norm_eps", 1e-20, 1.0),
            rope_theta=keys.rope_theta(_ABSENT_ROPE_THETA_IN_STORES if in_store else _ABSENT_ROPE_THETA),
            use_rope=keys.layout("rope_layout", layers, absent=True),
            use_window=use_window,
            sliding_window_size=window,
            router_softmax=keys.flag("moe_primary_router_apply_softmax"),
            tie_word_embeddings=keys.flag("tie_word_embeddings"),
            bos_token_id=bos,
            eos_token_ids=eos,
        )
        # said twice: by the published class, for vLLM's sake, or by what transformers makes of it
        keys.agrees("sliding_window", (None, window), "sliding_window_size")
        keys.agrees("sliding_window_pattern", (None, [int(flag) for flag in use_window]), "sliding_window_layout")
        types = ["sliding_attention" if flag else "full_attention" for flag in use_window]
        keys.agrees("layer_types", (None, types), "sliding_window_layout")
        keys.agrees("moe_layer_layout", (None, [1] * layers), "num_hidden_layers")
        keys.agrees("num_experts_per_tok", (None, active), "moe_num_active_primary_experts")
        keys.agrees("num_local_experts", (None, experts), "moe_num_primary_experts")
        keys.agrees("moe_intermediate_size", (None, ffn), "moe_ffn_hidden_size")
        for key, supported in _ONLY.items():
            keys.only(key, supported)
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
            "model_type": MODEL_TYPE,
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


def _check_architecture(raw: Mapping[str, Any]) -> None:
    architectures, kind = raw.get("architectures"), raw.get("model_type")
    if architectures is not None and architectures != [ARCHITECTURE]:
        raise ConfigError(f"architectures: expected ['{ARCHITECTURE}'], found {shown(architectures)}")
    # the published class has no type of its own, so transformers writes ""
    if architectures is None and kind != MODEL_TYPE:
        raise ConfigError(f"architectures: missing; expected ['{ARCHITECTURE}']")
    if kind not in (None, "", MODEL_TYPE):
        raise ConfigError(f"model_type: expected '{MODEL_TYPE}', found {shown(kind)}")
