"""The kinds of vocabularies that GGUF knows, each as the parts of a tokenizer.json that differ between them.

Owns how their tokens make up a text: bytes written as characters (GPT-2's way), or characters with a token for each
byte of the others (SentencePiece's). Knows nothing about special tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from smallthinker.expert_store.sources.gguf_tokenizer.vocabulary import (
    BYTE,
    CONVERT,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    GgufVocabulary,
)
from smallthinker.expert_store.sources.gguf_tokenizer.words import BYTE_LEVEL, WORDS
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_character

_SPACE = "▁"
_MOST_CHARACTERS = 256  # of a token of SentencePiece: its trainer makes up to 16, Gemma's runs of spaces have 31
_MOST_MERGES = 16  # a token, on average: Gemma's has two


class TokenizerModel(NamedTuple):
    """Parts of a tokenizer.json. post_processor: one that only sets offsets. bos: whether a text begins with it where
    the file doesn't say."""

    model: dict[str, Any]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    post_processor: dict[str, Any] | None
    decoder: dict[str, Any]
    bos: bool


def byte_level(vocabulary: GgufVocabulary) -> TokenizerModel:
    """GPT-2's, which nearly all newer models have. Raises CheckpointError."""
    words = WORDS[vocabulary.text("ggml.pre", one_of=WORDS) or ""]
    ascii = {byte_character(byte) for byte in (*b"\n", *range(0x20, 0x7F))}
    if missing := ascii - vocabulary.ids_of(NORMAL).keys():
        raise vocabulary.fault(
            "ggml.tokens", f"a token for '{min(missing)}', as for every byte of a text in ASCII", None
        )
    # the special tokens are in the model, too: the library gives those that it doesn't find there numbers of its own
    vocabulary.merges()  # checks them; no token has a space, so they can be taken as they are written
    model = {
        "type": "BPE",
        "ignore_merges": words.ignore_merges,
        "vocab": vocabulary.used,
        "merges": vocabulary.list_of("ggml.merges", str),
    }
    normalizer = None if words.normalizer is None else {"type": words.normalizer}
    return TokenizerModel(model, normalizer, words.pre_tokenizer(), BYTE_LEVEL, BYTE_LEVEL, words.bos)


def sentencepiece(vocabulary: GgufVocabulary) -> TokenizerModel:
    """Llama 2's, Mistral's, Gemma's: the best token that two neighbours make is made first. Raises CheckpointError."""
    if vocabulary.flag("ggml.remove_extra_whitespaces", False):
        raise vocabulary.fault("ggml.remove_extra_whitespaces", "false", True, CONVERT)
    prefix = vocabulary.flag("ggml.add_space_prefix", True)
    return _characters(vocabulary, _merges_of_scores(vocabulary), prefix, bos=True)


def gemma4(vocabulary: GgufVocabulary) -> TokenizerModel:
    """Gemma 4's: SentencePiece's tokens with merges. Raises CheckpointError."""
    return _characters(vocabulary, vocabulary.merges(), vocabulary.flag("ggml.add_space_prefix", False), bos=True)


MODELS = {"gpt2": byte_level, "llama": sentencepiece, "gemma4": gemma4}


def _characters(
    vocabulary: GgufVocabulary, merges: list[tuple[str, str]], prefix: bool, *, bos: bool
) -> TokenizerModel:
    """prefix: whether a text begins with a space that isn't shown, and so does what follows a special token."""
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    if missing := bytes_ - vocabulary.ids_of(BYTE).keys():
        raise vocabulary.fault("ggml.tokens", f"a token {min(missing)} of kind 6, as for every byte", None)
    unknown = vocabulary.id("ggml.unknown_token_id")
    unknown_token = next(iter(vocabulary.ids_of(UNKNOWN)), None) if unknown is None else vocabulary.tokens[unknown]
    model = {
        "type": "BPE",
        "unk_token": unknown_token if unknown_token in vocabulary.used else None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary.used,
        "merges": merges,
    }
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    return TokenizerModel(
        model,
        {"type": "Sequence", "normalizers": normalizers},
        None,
        None,
        {"type": "Sequence", "decoders": decoders},
        bos,
    )


def _merges_of_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every two tokens that make a third, by its score.

    SentencePiece takes the leftmost of equal ones, the library that with the lower rank. So they differ, very rarely,
    where a token's two halves can be chosen in two ways at once; this order of them is that of published files.
    """
    known = vocabulary.ids_of(NORMAL, USER_DEFINED)
    bound = _MOST_MERGES * len(known)
    id_of = known.get
    lefts, rights, merged = list[int](), list[int](), list[int]()
    for token, id in known.items():
        if len(token) > _MOST_CHARACTERS:
            raise vocabulary.fault("ggml.tokens", f"tokens of at most {_MOST_CHARACTERS} characters", token)
        for cut in range(1, len(token)):
            # fewer tokens end a token than begin it
            if (right := id_of(token[cut:])) is not None and (left := id_of(token[:cut])) is not None:
                lefts.append(left)
                rights.append(right)
                merged.append(id)
        if len(merged) > bound:
            raise vocabulary.fault("ggml.tokens", f"at most {bound} ways to make tokens of others", len(merged))
    keys = rights, lefts, -np.array(vocabulary.scores(), np.float64)[np.array(merged, np.int64)]
    order: list[int] = np.lexsort(keys).tolist()  # type: ignore[arg-type]
    tokens = vocabulary.tokens
    return [(tokens[lefts[i]], tokens[rights[i]]) for i in order]
