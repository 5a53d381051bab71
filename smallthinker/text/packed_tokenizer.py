"""A tokenizer over a packed vocabulary: what `Tokenizer` asks of the tokenizers library, with the library's own normal
forms, patterns and decoders, and byte pair encoding of our own.

The library keeps Qwen's 150,000 words in 50 MiB and needs a second to read them; this takes 5 and hundredths. Exactly
the library's tokens and offsets: whoever packs a vocabulary compares the two (`agree`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from smallthinker._bpe import Bpe
from smallthinker.text.packed_vocabulary import PackedVocabulary

_COMPARED_TEXTS, _COMPARED_TOKENS = 200, 24
_HARD_TEXTS = (
    "", " ", "  \n\n\t x", "Hello, world!  It's 12345 o'clock\r\n", "naïve café — “quoted”…", "🙂👩‍👩‍👧‍👦🇩🇪",
    "日本語の文章、中文。한국어", "e\u0301 \u00e9 \ufb01 \u212b", "def f(x):\n    return x**2  # \t\n",
    "\x00\x01\x7f\ufeff\u200b\ufffd", "नमस्ते العربية עברית ไทย",
)  # fmt: skip


class Encoding(NamedTuple):
    """Ids and, of each, the characters [start, end) of the text that it comes from."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class PackedTokenizer:
    """As far as it is used, `tokenizers.Tokenizer`."""

    def __init__(self, vocabulary: PackedVocabulary) -> None:
        """Raises ValueError where the vocabulary contradicts itself, and what the library raises for the rest of it."""
        from tokenizers import AddedToken, Tokenizer, models

        self._bpe = Bpe(
            **vocabulary.arrays,
            byte_fallback=vocabulary.byte_fallback,
            unknown=vocabulary.unknown,
            fuses_unknown=vocabulary.fuses_unknown,
            ignores_merges=vocabulary.ignores_merges,
        )
        self._words, self.beginning = vocabulary.arrays["sorted"], vocabulary.beginning
        self.size = vocabulary.size  # one more than the highest id
        rest = Tokenizer.from_str(json.dumps(vocabulary.rest))
        self.normalizer, self.pre_tokenizer, self.decoder = rest.normalizer, rest.pre_tokenizer, rest.decoder
        self._added = {
            token["id"]: AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in vocabulary.added
        }
        self._special = {token.content for token in self._added.values() if token.special}
        # Finds added tokens in a text: all else is one unknown word.
        self._finder = Tokenizer(models.WordLevel({"\0": 0}, unk_token="\0"))
        self._finder.add_tokens(list(self._added.values()))  # all at once: each call makes the automaton anew
        # by its own ids: what it found may have the spaces beside a token, too
        self._id_of = {self._finder.token_to_id(token.content): id for id, token in self._added.items()}

    @property
    def model(self) -> PackedTokenizer:
        return self

    def tokenize(self, word: str) -> list[Any]:
        """The library's tokens of a word of the pre-tokenizer's."""
        from tokenizers import Token

        return [Token(id, self._bpe.text(id) or "", (start, end)) for id, start, end in self._bpe.encode(word)]

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """Token ids of the text, those of added tokens among them. Nothing is added."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        found = self._finder.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            id = self._id_of.get(number)
            if id is not None:
                ids.append(id)
                offsets.append((start, end))
                continue
            inner = encode_words(self, text[start:end], self.tokenize, is_first=start == 0)
            ids += inner.ids
            offsets += [(a + start, b + start) for a, b in inner.offsets]
        return Encoding(ids, offsets)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        words = [word for word in map(self.id_to_token, ids) if word is not None]
        if skip_special_tokens:
            words = [word for word in words if word not in self._special]
        text: str = " ".join(words) if self.decoder is None else self.decoder.decode(words)
        return text

    def id_to_token(self, id: int) -> str | None:
        return self._bpe.text(id)

    def get_vocab(self, with_added_tokens: bool = False) -> dict[str, int]:
        """Of the words, without added tokens."""
        return {str(self._bpe.text(id)): id for id in self._words.tolist()}

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return self._added


def encode_words(tokenizer: Any, text: str, tokenize: Any, *, is_first: bool) -> Encoding:
    """A text without added tokens, by the stages of `tokenizer`, of the library or packed; `tokenize`: of its words.
    is_first: nothing is before the text; some tokenizers begin with a space there."""
    from tokenizers import PreTokenizedString

    lead = "" if is_first else "x"
    pieces = PreTokenizedString(lead + text)
    if lead:
        pieces.split(lambda _, piece: [piece[len(lead) :]])
    if tokenizer.normalizer is not None:
        pieces.normalize(tokenizer.normalizer.normalize)
    if tokenizer.pre_tokenizer is not None:
        tokenizer.pre_tokenizer.pre_tokenize(pieces)
    pieces.tokenize(tokenize)
    encoding = pieces.to_encoding()
    return Encoding(encoding.ids, [(a - len(lead), b - len(lead)) for a, b in encoding.offsets])


def agree(packed: PackedTokenizer, library: Any) -> bool:
    """Whether both make the same of hard texts, of added tokens between spaces and letters, and of texts of random
    tokens, there and back."""
    added = [token.content for token in packed.get_added_tokens_decoder().values()][:_COMPARED_TEXTS]
    texts = [*_HARD_TEXTS, *(f"a {word} \n{word}b{word}" for word in added)]
    for ids in _random_ids(packed.size):
        text = library.decode(ids, skip_special_tokens=True)
        if packed.decode(ids) != text:
            return False
        texts.append(text)
    return all(_encoded(packed, text) == _encoded(library, text) for text in texts)


def _encoded(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _random_ids(size: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    for _ in range(_COMPARED_TEXTS):
        yield rng.integers(0, size, _COMPARED_TOKENS).tolist()
