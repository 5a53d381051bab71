"""Typed look-ups in a GGUF file's metadata that remember which keys were used, and what a family's file makes of them.

Owns how a message names a key, and what the file says beside its metadata. Knows nothing about which keys a family has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from smallthinker.errors import ConfigError, printable, shown_or_nothing

ARCHITECTURE_KEY = "general.architecture"
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are metadata: by how much the frequency of each rotary pair is divided, always, or in long sequences and
in short ones."""


class GgufFacts(NamedTuple):
    """What the rest of the file says: tokens of its tokenizer, whether the head is the embedding, special tokens, and
    what is in the tensors of `FACTORS`."""

    vocab_size: int
    tied: bool
    bos_token_id: int | None
    eos_token_ids: list[int]
    tensors: Collection[str] = ()
    factors_of: Mapping[str, Sequence[float]] = {}

    def has(self, tensor: str) -> bool:
        """Whether the file has this tensor."""
        return tensor in self.tensors

    def factors(self, tensor: str) -> list[float] | None:
        """What is in one of `FACTORS`, if the file has it."""
        return list(self.factors_of[tensor]) if tensor in self.factors_of else None


class GgufKeys:
    """Typed look-ups of the architecture's own keys that remember which were used."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, where: str) -> None:
        """where: the file, for messages. Every method raises ConfigError, naming the key."""
        prefix = f"{architecture}."
        self._architecture, self._where = architecture, where
        self._left = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}

    def fault(self, key: str, expected: object, found: object) -> ConfigError:
        remedy = "this engine can't run it: convert the model again, from its original weights"
        return ConfigError(
            f"{self._where}: {self._architecture}.{key}: expected {expected}, found {shown_or_nothing(found)}; {remedy}"
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

    def text(self, key: str, default: str | None = None) -> str:
        value = self._left.pop(key, default)
        if not isinstance(value, str):
            raise self.fault(key, "a text", value)
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._left.pop(key, default)
        if type(value) is not bool:
            raise self.fault(key, "true or false", value)
        return value

    def take(self, key: str, default: Any = None) -> Any:
        """For who checks it."""
        return self._left.pop(key, default)

    def same(self, key: str, value: float, other: float, of: str) -> None:
        if value != other:
            raise self.fault(key, f"{other} ({of})", value)

    def has(self, key: str) -> bool:
        return key in self._left

    def only(self, key: str, supported: tuple[Any, ...]) -> None:
        self.one_of(key, supported, " or ".join(map(repr, supported)))

    def only_these(self, supported: Mapping[str, tuple[Any, ...]]) -> None:
        for key, values in supported.items():
            self.only(key, values)

    def one_of(self, key: str, accepted: tuple[Any, ...], expected: str) -> None:
        """Absent, or one of these."""
        value = self._left.pop(key, accepted[0])
        if value not in accepted:
            raise self.fault(key, expected, value)

    def reject_unknown(self) -> None:
        if self._left:
            key = min(self._left)
            raise ConfigError(
                f"{self._where}: {self._architecture}.{printable(key, 80)}: unknown key; this engine can't tell what "
                "it changes in the model"
            )
