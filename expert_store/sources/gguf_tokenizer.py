"""The tokenizer in a GGUF file's metadata as a tokenizer.json and a tokenizer_config.json.

Owns the meaning of the keys `tokenizer.*` for byte-level BPE vocabularies of Qwen's kind, the one that SmallThinker
has. What GGUF doesn't say (the split into words, the normal form) is known by the name of the kind. Knows nothing about
weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from smallthinker.errors import CheckpointError, shown_or_nothing
from smallthinker.expert_store.format import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from smallthinker.expert_store.synthetic.byte_tokenizer import END_OF_TEXT, TURN_END, byte_character

_MODEL, _PRE = "gpt2", "qwen2"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # kinds of tokens; a sixth, bytes, isn't BPE's

_USED = (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED)

# One word, number or run of signs or spaces at a time: Qwen's published pattern.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


class GgufTokenizer:
    """The tokens of a file, checked. Raises CheckpointError for another kind of tokenizer or a broken one."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where
        for key, supported in (("ggml.model", _MODEL), ("ggml.pre", _PRE)):
            found = metadata.get(f"tokenizer.{key}")
            if found != supported:
                raise self._fault(
                    key, f"'{supported}', byte-level BPE of Qwen's kind", found, "convert from the original weights"
                )
        self.tokens: list[str] = self._list("ggml.tokens", str)
        self._kinds: list[int] = self._list("ggml.token_type", int)
        self._merges: list[str] = self._list("ggml.merges", str)
        if len(self._kinds) != len(self.tokens):
            raise self._fault("ggml.token_type", f"{len(self.tokens)} entries, one a token", len(self._kinds))
        self._check_tokens()

    @property
    def bos_token_id(self) -> int | None:
        return self._id("ggml.bos_token_id")

    @property
    def eos_token_ids(self) -> list[int]:
        """What ends an answer: the file's own ids and, as in llama.cpp, the tokens that are named so. In order."""
        named = (self._id(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        ends = {i for i in named if i is not None}
        known = self._vocabulary(_CONTROL)
        return sorted(ends | {known[token] for token in (END_OF_TEXT, TURN_END) if token in known})

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json by name. Unused tokens are left out: no text has them."""
        added = [
            {"id": i, "content": token, "special": kind != _USER_DEFINED, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, (token, kind) in enumerate(zip(self.tokens, self._kinds, strict=True))
            if kind in _USED and kind != _NORMAL
        ]
        split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
            "post_processor": _BYTE_LEVEL,
            "decoder": _BYTE_LEVEL,
            # the special ones too: the library gives those that it doesn't find here numbers of its own
            "model": {"type": "BPE", "vocab": self._vocabulary(*_USED), "merges": self._merges},
        }
        ids = {name: self._id(f"ggml.{key}_token_id") for name, key in (
            ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown"),
        )}  # fmt: skip
        settings: dict[str, Any] = {name: None if i is None else self.tokens[i] for name, i in ids.items()}
        template = self._metadata.get("tokenizer.chat_template")
        if template is not None:
            if not isinstance(template, str):
                raise self._fault("chat_template", "a text", template)
            settings["chat_template"] = template
        return {
            TOKENIZER_FILE: json.dumps(tokenizer).encode("ascii"),
            TOKENIZER_CONFIG_FILE: json.dumps(settings, indent=1).encode("ascii"),
        }

    def _vocabulary(self, *kinds: int) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if self._kinds[i] in kinds}

    def _check_tokens(self) -> None:
        unknown = set(self._kinds) - {*_USED, _UNUSED}
        if unknown:
            raise self._fault("ggml.token_type", "kinds 1 to 5", min(unknown))
        used = Counter(token for token, kind in zip(self.tokens, self._kinds, strict=True) if kind != _UNUSED)
        twice, times = max(used.items(), key=lambda item: item[1], default=("", 0))
        if times > 1:
            raise self._fault("ggml.tokens", f"every token once, not {times} times", twice)
        normal = self._vocabulary(_NORMAL)
        alphabet = {byte_character(byte) for byte in range(256)}
        for token in normal:
            if not alphabet.issuperset(token):
                raise self._fault("ggml.tokens", "characters that stand for bytes", token)
        for merge in self._merges:
            left, _, right = merge.partition(" ")
            if left not in normal or right not in normal or left + right not in normal:
                raise self._fault("ggml.merges", "two tokens that make a third", merge)

    def _id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.{key}")
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self._fault(key, f"the id of one of {len(self.tokens)} tokens", value)
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(f"tokenizer.{key}")
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            what = "texts" if kind is str else "integers"
            raise self._fault(key, f"a list of {what}", value)
        return value

    def _fault(
        self, key: str, expected: str, found: object, remedy: str = "the file is damaged: copy or download it again"
    ) -> CheckpointError:
        if isinstance(found, list):
            found = found[:8]  # it may have millions of entries
        text = shown_or_nothing(found)
        return CheckpointError(f"{self._where}: tokenizer.{key}: expected {expected}, found {text}; {remedy}")
