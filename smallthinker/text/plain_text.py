"""Text of users in a prompt: what looks like a special token in it is encoded as ordinary text.

A chat template mixes its own special tokens with what users wrote, and its output doesn't tell which is which. So
strings are protected before they go in: behind the first character of everything that could be read as a special token
stands a seal, digits that nobody can guess, and digits survive what templates do with texts (trim, split, tojson). What
still is a special token in the output is the template's own. Knows nothing about templates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from smallthinker.text.chat_template import REASONING
from smallthinker.text.packed_tokenizer import Encoding, encode_words
from smallthinker.text.panics import tokenizer_faults

Spans = Sequence[tuple[int, int]]
_SEAL_DIGITS = 20  # as a number of 64 bits has
_RARE = range(0x3400, 0x4DB6)  # ideographs: no normaliser takes them away
# Added tokens that aren't marked special are control tokens, too, where they are written as markup (`<tool_call>`,
# `</think>`, `[INST]`). Others are words like those of the vocabulary: runs of spaces, names.
_MARKUP = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


class ControlTokens:
    """Those tokens that must not come of a user's text. `tokenizer`: of the tokenizers library, or packed."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        control = {id: t for id, t in added.items() if t.content and (t.special or _MARKUP.fullmatch(t.content))}
        self.ids = frozenset(control)
        self.texts = frozenset(token.content for token in control.values())
        self.special_texts = frozenset(token.content for token in control.values() if token.special)
        self.normalizer = tokenizer.normalizer if any(token.normalized for token in control.values()) else None

    @cached_property
    def all(self) -> Finder:
        return Finder(self.texts, self.normalizer)

    @cached_property
    def special(self) -> Finder:
        return Finder(self.special_texts, self.normalizer)


class Finder:
    """Finds where a text, or one put together of it and its neighbours, could be read as one of a few words."""

    def __init__(self, words: Iterable[str], normalizer: Any = None) -> None:
        longest_first = sorted(words, key=len, reverse=True)
        self._normalizer = normalizer
        self._words = _any_of([word for word in longest_first if len(word) > 1])
        self._starts = re.compile(f"(?={self._words.pattern}).", re.DOTALL)  # those of words that overlap, too
        self._single = _any_of([word for word in longest_first if len(word) == 1])
        self._heads = frozenset(word[:n] for word in longest_first for n in range(1, len(word)))
        self._tails = frozenset(word[n:] for word in longest_first for n in range(1, len(word)))
        self._longest = max((len(word) for word in longest_first), default=0)

    def seal(self, text: str, seal: str) -> str:
        """The text with seals where it needs them."""
        if self._normalizer is not None:
            normal = self._normalizer.normalize_str(text)
            # other characters that become a token's; what becomes of the text is the same
            if normal != text and self._words.search(normal) and not self._words.search(text):
                text = normal
        sealed = self._starts.sub(lambda found: found[0] + seal, text) if self._words.search(text) else text
        sealed = self._single.sub(lambda found: seal + found[0], sealed)
        # what the next text could complete, and what completes the one before
        end = len(sealed.rstrip())
        for start in range(end - 1, max(-1, end - self._longest), -1):
            if sealed[start:end] in self._heads:
                sealed, end = sealed[: start + 1] + seal + sealed[start + 1 :], end + len(seal)
        begin = len(sealed) - len(sealed.lstrip())
        if any(sealed[begin : begin + n] in self._tails for n in range(1, self._longest)):
            sealed = sealed[:begin] + seal + sealed[begin:]
        return sealed


class PlainText:
    """For one prompt: protect the strings of users, let the template put them together, encode what comes of it.

    also: texts that mean something to whoever reads the prompt, though they are no tokens.
    """

    def __init__(self, control: ControlTokens, also: Iterable[str] = ()) -> None:
        self._control = control
        more = frozenset(also) - control.texts
        self._all = Finder(control.texts | more, control.normalizer) if more else control.all
        self.seal = str(int.from_bytes(os.urandom(8), "little")).zfill(_SEAL_DIGITS)

    def protect(self, value: Any) -> Any:
        """The value with every string in it protected, keys too."""
        return self._protected(value, self._all)

    def protect_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of the assistant's own words, only special tokens are plain text: it writes thoughts and calls with others,
        and templates look for them."""
        return [
            {name: self._protected(value, self._finder(message, name)) for name, value in message.items()}
            for message in messages
        ]

    def reveal(self, text: str) -> str:
        """The text without seals."""
        return text.replace(self.seal, "")

    @tokenizer_faults("encode a text")
    def encode(self, text: str) -> tuple[list[int], Spans]:
        """Token ids of a protected text, and the characters [start, end) of the revealed one that each comes from.
        Without seals, exactly what the tokenizer makes of it."""
        seal, tokenizer = self.seal, self._control.tokenizer
        if seal in text:  # a short one instead: thousands of them would take seconds
            short = next((c for c in map(chr, _RARE) if c not in text), seal)
            text, seal = text.replace(seal, short), short
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if seal not in text:
            return encoding.ids, encoding.offsets
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        done = hidden = first = 0  # characters of the text, those of them in seals, tokens

        def add_until(end: int, last: int) -> None:
            part = text[done:end]
            if seal in part:
                encoded = _encode_plain(self._control, part.replace(seal, ""), is_first=done == 0)
                found, offsets, shift = encoded.ids, encoded.offsets, done - hidden
            else:
                found, offsets, shift = encoding.ids[first:last], encoding.offsets[first:last], -hidden
            ids.extend(found)
            spans.extend((a + shift, b + shift) for a, b in offsets)

        for at, (id, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
            is_sealed = end - start == 1 and text.endswith(seal, 0, start)
            if id in self._control.added_ids and start >= done and not is_sealed:
                add_until(start, at)
                hidden += text.count(seal, done, start) * len(seal)
                ids.append(id)
                spans.append((start - hidden, end - hidden))
                done, first = end, at + 1
        add_until(len(text), len(encoding.ids))
        return ids, spans

    def _finder(self, message: Mapping[str, Any], name: str) -> Finder:
        is_own = message.get("role") == "assistant" and name in ("content", *REASONING)
        return self._control.special if is_own else self._all

    def _protected(self, value: Any, finder: Finder) -> Any:
        if isinstance(value, str):
            return finder.seal(value, self.seal)
        if isinstance(value, Mapping):
            return {self._protected(key, finder): self._protected(one, finder) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._protected(one, finder) for one in value]
        return value


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, words)) or "(?!)")


def _encode_plain(control: ControlTokens, text: str, *, is_first: bool) -> Encoding:
    """As the tokenizer does it, but that it knows no added tokens. It has no switch for this, and a second one without
    them would take as much memory again, so its stages are called one by one. is_first: see
    `encode_words`."""
    from tokenizers import Token

    tokenizer, model = control.tokenizer, control.tokenizer.model

    def tokenize(word: str) -> list[Token]:
        tokens: list[Token] = model.tokenize(word)
        bad = next((token for token in tokens if token.id in control.ids), None)
        if bad is None or len(word) == 1:
            return tokens
        # a vocabulary that has them as words, too
        at = word.find(bad.value)
        cut = at + 1 if at >= 0 and len(bad.value) > 1 else len(word) // 2
        shift = len(word[:cut].encode())
        after = [Token(t.id, t.value, (t.offsets[0] + shift, t.offsets[1] + shift)) for t in tokenize(word[cut:])]
        return tokenize(word[:cut]) + after

    return encode_words(tokenizer, text, tokenize, is_first=is_first)
