"""From a GGUF file's metadata to the files of a tokenizer.

Owns special tokens, and what belongs around a text. Knows nothing about weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from smallthinker.expert_store.format import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from smallthinker.expert_store.sources.gguf_tokenizer.models import MODELS
from smallthinker.expert_store.sources.gguf_tokenizer.vocabulary import (
    BYTE,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
)

# Phi-3's control tokens take the spaces behind them; GGUF has no word for it, so its readers go by the model's name
_STRIPS = ("phi-3", "phi3")
_STRIPS_NOT = ("<unk>", "<s>", "<|endoftext|>")


MADE = 1
"""To be counted on when something else is made of a file: what was kept of it by an earlier version is made again."""


class TokenizerFacts(NamedTuple):
    """What a start asks of a tokenizer that is kept elsewhere. settings: its tokenizer_config.json."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    settings: str


class GgufTokenizer:
    """The tokens of a file, checked. Raises CheckpointError for a kind that isn't known or a broken tokenizer."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        vocabulary = GgufVocabulary(metadata, where)
        self._vocabulary = vocabulary
        self._model = MODELS[vocabulary.text("ggml.model", one_of=MODELS) or ""](vocabulary)
        named = metadata.get("tokenizer.chat_templates")  # beside the default one, as `tool_use`
        if named is not None and (not isinstance(named, list) or not all(isinstance(name, str) for name in named)):
            raise vocabulary.fault("chat_templates", "a list of names", named)
        found = {name: vocabulary.text(f"chat_template.{name}") for name in sorted(named or ())}
        self._templates = {"default": vocabulary.text("chat_template")} | found
        name = metadata.get("general.name")
        self._strips = isinstance(name, str) and any(part in name.lower() for part in _STRIPS)
        self.tokens = vocabulary.tokens
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_ids = vocabulary.eos_token_ids
        self._before, self._after = vocabulary.around("bos", self._model.bos), vocabulary.around("eos", False)

    def facts(self) -> TokenizerFacts:
        return TokenizerFacts(len(self.tokens), self.bos_token_id, self.eos_token_ids, self._settings())

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json by name. Unused tokens are left out: no text has them."""
        return {TOKENIZER_FILE: self._words(), TOKENIZER_CONFIG_FILE: self._settings().encode("ascii")}

    def _words(self) -> bytes:
        model = self._model
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added_tokens(),
            "normalizer": model.normalizer,
            "pre_tokenizer": model.pre_tokenizer,
            "post_processor": self._post_processor(),
            "decoder": model.decoder,
            "model": model.model,
        }
        return json.dumps(tokenizer).encode("ascii")

    def _settings(self) -> str:
        ids = {name: self._vocabulary.id(f"ggml.{key}_token_id") for name, key in (
            ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown"),
        )}  # fmt: skip
        settings: dict[str, Any] = {name: None if i is None else self.tokens[i] for name, i in ids.items()}
        templates = {name: text for name, text in self._templates.items() if text is not None}
        if set(templates) == {"default"}:
            settings["chat_template"] = templates["default"]
        elif templates:
            settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        return json.dumps(settings, indent=1)

    def _added_tokens(self) -> list[dict[str, Any]]:
        """Those that a text names as a whole: control tokens, and words that are found before all others."""
        added = []
        for id, (token, kind) in enumerate(zip(self.tokens, self._vocabulary.kinds, strict=True)):
            if kind not in (NORMAL, BYTE, UNUSED):
                is_special = kind != USER_DEFINED
                strips = self._strips and is_special and token not in _STRIPS_NOT
                sides = {"single_word": False, "lstrip": False, "rstrip": strips, "normalized": False}
                added.append({"id": id, "content": token, "special": is_special} | sides)
        return added

    def _post_processor(self) -> dict[str, Any] | None:
        around = {self.tokens[id]: id for id in (self._before, self._after) if id is not None}
        if not around:
            return self._model.post_processor

        def piece(id: int | None, type_id: int) -> list[dict[str, Any]]:
            return [] if id is None else [{"SpecialToken": {"id": self.tokens[id], "type_id": type_id}}]

        def text(name: str, type_id: int) -> list[dict[str, Any]]:
            inner = [{"Sequence": {"id": name, "type_id": type_id}}]
            return piece(self._before, type_id) + inner + piece(self._after, type_id)

        template = {
            "type": "TemplateProcessing",
            "single": text("A", 0),
            "pair": text("A", 0) + text("B", 1),
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]} for token, id in around.items()},
        }
        if self._model.post_processor is None:
            return template
        return {"type": "Sequence", "processors": [self._model.post_processor, template]}
