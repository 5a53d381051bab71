"""The configuration that a GGUF file's metadata describes, as llama.cpp reads it for the architecture "smallthinker".

Owns the meaning of the metadata's keys; values and their relations are checked as those of a config.json. Knows nothing
about tensors or tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.errors import ConfigError, printable, shown_or_nothing
from smallthinker.expert_store.synthetic.published import PUBLISHED
from smallthinker.models.description import Model
from smallthinker.models.families import parse_model
from smallthinker.models.smallthinker import ARCHITECTURE

GGUF_ARCHITECTURE = "smallthinker"
# Where there is a window, llama.cpp leaves the first of every four layers without one, and without rotated positions.
_WINDOW_PERIOD = 4
_SOFTMAX, _SIGMOID = 1, 2  # PowerInfer's converter writes nothing for the second, as the 4B's config.json does

# What llama.cpp neither writes otherwise for this architecture nor would compute otherwise.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none",),
}


def check_architecture(metadata: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for another model's file."""
    architecture = metadata.get("general.architecture")
    if architecture != GGUF_ARCHITECTURE:
        raise ConfigError(
            f"{where}: general.architecture: expected '{GGUF_ARCHITECTURE}', found {shown_or_nothing(architecture)}; "
            "this engine runs no other models"
        )


def gguf_config(
    metadata: Mapping[str, Any],
    where: str,
    *,
    vocab_size: int,
    tied: bool,
    bos_token_id: int | None,
    eos_token_ids: list[int],
) -> Model:
    """vocab_size: tokens of the file's tokenizer; tied: there is no head of its own. Raises ConfigError."""
    keys = _Keys(metadata, where)
    layers = keys.integer("block_count")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        keys.same(key, keys.integer(key, head_dim), head_dim, "attention.key_length")
    keys.same("vocab_size", keys.integer("vocab_size", vocab_size), vocab_size, "tokens")
    theta = keys.number("rope.freq_base")
    keys.same("rope.freq_base_swa", keys.number("rope.freq_base_swa", theta), theta, "rope.freq_base")
    window = keys.integer("attention.sliding_window", 0)
    # a model with a window is of the 21B's kind, softmax: only a file that lost the key doesn't say so
    gating = keys.integer("expert_gating_func", 0 if window else _SIGMOID)
    if gating not in (_SOFTMAX, _SIGMOID):
        raise keys.fault("expert_gating_func", "1 (softmax) or 2 (sigmoid)", gating or None)
    pattern = [int(window > 0 and layer % _WINDOW_PERIOD > 0) for layer in range(min(layers, 1 << 16))]
    keys.window_pattern(pattern)
    ffn = keys.integer("feed_forward_length", 0)
    raw = {
        "architectures": [ARCHITECTURE],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "moe_num_primary_experts": keys.integer("expert_count"),
        "moe_num_active_primary_experts": keys.integer("expert_used_count"),
        "moe_ffn_hidden_size": keys.integer("expert_feed_forward_length", ffn),
        "moe_primary_router_apply_softmax": gating == _SOFTMAX,
        "vocab_size": vocab_size,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_layout": pattern if window else [1] * len(pattern),
        "sliding_window_layout": pattern,
        "tie_word_embeddings": tied,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_ids,
    }
    if window:
        raw["sliding_window_size"] = window
    for key, supported in _ONLY.items():
        keys.only(key, supported)
    keys.reject_unknown()
    try:
        return parse_model(raw)
    except ConfigError as e:
        raise ConfigError(f"{where}: metadata of '{GGUF_ARCHITECTURE}', as a config.json: {e}") from None


def gguf_notes(metadata: Mapping[str, Any], config: Model) -> tuple[str, ...]:
    """What was taken for granted, since the file can't say it or doesn't; nothing of the published shapes."""
    notes = []
    if f"{GGUF_ARCHITECTURE}.expert_gating_func" not in metadata:
        notes.append(
            f"{GGUF_ARCHITECTURE}.expert_gating_func: missing, taken as sigmoid, which PowerInfer's converter doesn't "
            "write; if the model's config.json has moe_primary_router_apply_softmax, convert from the original weights"
        )
    if not any(_layout(config) == _layout(parse_model(raw)) for raw in PUBLISHED.values()):
        windows = (
            "the first of every four layers taken to have neither window nor rotary positions, the others both"
            if any(layer.attention.window for layer in config.layers)
            else "no layer taken to have a window, all of them to have rotary positions"
        )
        notes.append(
            f"{GGUF_ARCHITECTURE}.attention.sliding_window: {windows}: GGUF can't say more; if the model's config.json "
            "has another rope_layout or sliding_window_layout, convert from the original weights"
        )
    return tuple(notes)


def _layout(config: Model) -> tuple[Any, ...]:
    flags = [(bool(layer.attention.window), layer.attention.rope is not None) for layer in config.layers]
    return config.hidden_size, config.experts_per_layer, flags


class _Keys:
    """Typed look-ups of the architecture's own keys that remember which were used."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        prefix = f"{GGUF_ARCHITECTURE}."
        self._where = where
        self._left = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}

    def fault(self, key: str, expected: object, found: object) -> ConfigError:
        remedy = "this engine can't run it: convert the model again, from its original weights"
        return ConfigError(
            f"{self._where}: {GGUF_ARCHITECTURE}.{key}: expected {expected}, found {shown_or_nothing(found)}; {remedy}"
        )

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._left.pop(key, default)
        if type(value) is not int:
            raise self.fault(key, "an integer", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._left.pop(key, default)
        if type(value) is not float:
            raise self.fault(key, "a number", value)
        return value

    def same(self, key: str, value: float, other: float, of: str) -> None:
        if value != other:
            raise self.fault(key, f"{other} ({of})", value)

    def only(self, key: str, supported: tuple[Any, ...]) -> None:
        value = self._left.pop(key, supported[0])
        if value not in supported:
            raise self.fault(key, " or ".join(map(repr, supported)), value)

    def window_pattern(self, layout: list[int]) -> None:
        """The layers with a window, or how often one has none; llama.cpp's own is the only one it can compute."""
        key = "attention.sliding_window_pattern"
        value = self._left.pop(key, _WINDOW_PERIOD)
        if value != _WINDOW_PERIOD and value != layout:
            raise self.fault(key, f"{_WINDOW_PERIOD}: no window in the first of every four layers", value)

    def reject_unknown(self) -> None:
        if self._left:
            key = min(self._left)
            raise ConfigError(
                f"{self._where}: {GGUF_ARCHITECTURE}.{printable(key, 80)}: unknown key; this engine can't tell what "
                "it changes in the model"
            )
