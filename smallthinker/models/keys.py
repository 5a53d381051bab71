"""Typed look-ups in a raw config.json that remember which keys were used.

Owns what a value of each kind may be, how a message names it, and the keys that transformers 4 and 5 write into every
configuration. Knows nothing about which keys a family has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from smallthinker.errors import ConfigError, printable, shown

# Keys that change nothing in any family's forward pass. Anything else that a family doesn't know is an error: a key
# that we ignored could mean another model.
_FILE_FACTS = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attn_implementation",
    "auto_map", "dtype", "experts_implementation", "initializer_range", "model_name", "name_or_path", "tokenizer_class",
    "torch_dtype", "transformers_version",
}  # fmt: skip
_TRAINING_AND_TASKS = {
    "attention_dropout", "chunk_size_feed_forward", "finetuning_task", "gradient_checkpointing", "id2label",
    "is_decoder", "label2id", "num_labels", "output_attentions", "output_hidden_states", "output_router_logits",
    "prefix", "problem_type", "return_dict", "router_aux_loss_coef", "task_specific_params", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_last_hidden_states", "torchscript", "use_bfloat16", "use_cache",
}  # fmt: skip
# transformers 4 keeps these in config.json too. A request says how it samples.
_SAMPLING = {
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "pad_token_id", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
_IGNORED = {"architectures", "model_type", *_FILE_FACTS, *_TRAINING_AND_TASKS, *_SAMPLING}

ROPE_THETA_RANGE = (1.0, 1e15)  # below 1, frequencies would rise; beyond, float32's would be zero
ROPE_KEYS = ("rope_parameters", "rope_scaling")  # what transformers 5 writes, and 4
LAYER_TYPES = ("full_attention", "sliding_attention")

_Chosen = TypeVar("_Chosen")


class Keys:
    """Every method raises ConfigError, naming the key. limits: the largest value of each positive integer."""

    def __init__(self, raw: Mapping[str, Any], ignored: Collection[str], limits: Mapping[str, int]) -> None:
        """ignored: the family's own keys that change nothing."""
        self.raw = raw
        self._limits = limits
        self._seen = _IGNORED.union(ignored)

    def get(self, key: str) -> Any:
        """What the file says, for who checks it."""
        self._seen.add(key)
        return self.raw.get(key)

    def positive(self, key: str, null: int | None = None, most: int | None = None, multiple_of: int = 1) -> int:
        """null: what a null means, if it may. most: that another key allows."""
        value = self.get(key)
        value = null if value is None else value
        most = min(self._limits[key], most or self._limits[key])
        if type(value) is not int or not 0 < value <= most:
            raise ConfigError(f"{key}: expected an integer from 1 to {most}, found {shown(value)}")
        if value % multiple_of:
            raise ConfigError(f"{key}: expected a multiple of {multiple_of}, found {value}")
        return value

    def natural(self, key: str) -> int:
        """0 or more."""
        value = self.get(key)
        if type(value) is not int or not 0 <= value <= self._limits[key]:
            raise ConfigError(f"{key}: expected an integer from 0 to {self._limits[key]}, found {shown(value)}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        return checked_number(key, self.get(key), least, most)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: expected true or false, found {shown(value)}")
        return value

    def one_of(self, key: str, choices: Mapping[str, _Chosen]) -> _Chosen:
        """What a name stands for."""
        value = self.get(key)
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{key}: expected {' or '.join(map(repr, choices))}, found {shown(value)}")
        return choices[value]

    def window(self, key: str) -> int:
        """Positions that a query sees; 0 for null: all."""
        return 0 if self.get(key) is None else self.positive(key)

    def layer_types(self, absent: Sequence[str], kinds: Sequence[str] = LAYER_TYPES) -> tuple[str, ...]:
        """Of each layer, one of these kinds."""
        value = self.get("layer_types")
        if value is None:
            return tuple(absent)
        if not isinstance(value, list) or any(kind not in kinds for kind in value):
            raise ConfigError(f"layer_types: expected a list of {' and '.join(kinds)}, found {shown(value)}")
        if len(value) != len(absent):
            raise ConfigError(f"layer_types: expected {len(absent)} entries (num_hidden_layers), found {len(value)}")
        return tuple(value)

    def layout(self, key: str, layers: int, absent: bool) -> tuple[bool, ...]:
        """One flag a layer."""
        value = self.get(key)
        if value is None:
            return (absent,) * layers
        if not isinstance(value, list) or any(type(v) not in (int, bool) or v not in (0, 1) for v in value):
            raise ConfigError(f"{key}: expected a list of 0 and 1, found {shown(value)}")
        if len(value) != layers:
            raise ConfigError(f"{key}: expected {layers} entries (num_hidden_layers), found {len(value)}")
        return tuple(bool(v) for v in value)

    def tokens(self, key: str, absent: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
        """One id, or a list of them, each once; none for null. A vocabulary smaller than the published one lacks those
        that an absent key means."""
        value = self.get(key)
        return token_ids(key, value) if key in self.raw else tuple(id for id in absent if id < vocab_size)

    def token(self, key: str, absent: int | None, vocab_size: int) -> int | None:
        if isinstance(self.raw.get(key), list):
            raise ConfigError(f"{key}: expected a token id, found {shown(self.raw[key])}")
        return next(iter(self.tokens(key, () if absent is None else (absent,), vocab_size)), None)

    def rope_theta(self, absent: float) -> float:
        """That of `rope_theta` and of the dictionaries in which transformers keeps it, if they agree."""
        found = {"rope_theta": value} if (value := self.get("rope_theta")) is not None else {}
        for key in ROPE_KEYS:
            value = self.get(key)
            if value is None:
                continue
            parts = {"": value}
            if isinstance(value, Mapping) and value and set(value) <= set(LAYER_TYPES):
                parts = {f".{kind}": part for kind, part in value.items() if part is not None}
            for part, settings in parts.items():
                theta = _default_rope(key + part, settings)
                if theta is not None:
                    found[f"{key}{part}.rope_theta"] = theta
        values = {key: checked_number(key, value, *ROPE_THETA_RANGE) for key, value in found.items()}
        (first, theta), *others = values.items() if values else [("", absent)]
        for key, other in others:
            if other != theta:
                raise ConfigError(f"{key}: expected {theta:g} as {first} says, found {other:g}; correct one of them")
        return theta

    def agrees(self, key: str, accepted: tuple[Any, ...], other: str) -> None:
        """A key that says again what another says."""
        value = self.get(key)
        if not _is_one_of(value, accepted):
            expected = shown(accepted[-1])
            raise ConfigError(f"{key}: expected {expected} as {other} says, found {shown(value)}; correct one of them")

    def only(self, key: str, supported: tuple[Any, ...]) -> None:
        """A key with one value that this engine implements; absent or null means that value."""
        value = self.get(key)
        if value is not None and not _is_one_of(value, supported):
            expected = "none" if supported == (None,) else shown(supported[0])
            raise ConfigError(f"{key}: only {expected} is supported, found {shown(value)}")

    def only_these(self, supported: Mapping[str, tuple[Any, ...]]) -> None:
        for key, values in supported.items():
            self.only(key, values)

    def reject_unknown(self) -> None:
        unknown = sorted(printable(str(key), 80) for key in set(self.raw) - self._seen)
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown key; this engine can't tell what it changes in the model")


def token_ids(key: str, value: Any) -> tuple[int, ...]:
    """One id, or a list of them, each once; none for null. Raises ConfigError."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(v) is not int or v < 0 for v in values):
        raise ConfigError(f"{key}: expected a token id or a list of them, found {shown(value)}")
    return tuple(dict.fromkeys(values))


def _default_rope(key: str, settings: Any) -> Any:
    """The base of plain rotary positions, if it is there."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{key}: expected an object, found {shown(settings)}")
    for name, value in settings.items():
        if name in ("rope_type", "type"):
            if value != "default":
                raise ConfigError(f"{key}.{name}: only 'default' is supported, found {shown(value)}")
        elif name == "partial_rotary_factor":
            if value is not None and not _is_one_of(value, (1.0, 1)):
                raise ConfigError(f"{key}.{name}: only 1.0 is supported, found {shown(value)}")
        elif name != "rope_theta":
            raise ConfigError(
                f"{key}.{printable(str(name), 80)}: unknown key; only plain rotary positions are supported"
            )
    return settings.get("rope_theta")


def checked_number(key: str, value: Any, least: float, most: float) -> float:
    """Raises ConfigError, naming the key."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise ConfigError(f"{key}: expected a positive number from {least:g} to {most:g}, found {shown(value)}")
    return float(value)


def _is_one_of(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Python takes True for 1 and 1.0, which JSON doesn't."""
    return any(type(value) is type(one) and value == one for one in accepted)
