"""Tokens to text, whole or as they come: together, the pieces are what the whole decodes to.

Knows the kinds of decoders in a tokenizer.json: byte-level ones (GPT-2's, Qwen's), SentencePiece's with its byte
tokens, and others whose text depends on the tokens just before. Knows nothing about models.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from smallthinker.text.panics import tokenizer_faults

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Decoding:
    """What the tokens of one tokenizer, of the tokenizers library or packed, become."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self.special_names = frozenset(token.content for token in added.values() if token.special)
        kinds = _kinds(None if tokenizer.decoder is None else json.loads(tokenizer.decoder.__getstate__()))
        self.is_byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        self.is_partly_byte_level = "ByteLevel" in kinds
        self._has_byte_tokens = "ByteFallback" in kinds

    @tokenizer_faults("decode tokens")
    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def token(self, id: int) -> str | None:
        """A token's name, if `decode` takes any notice of it."""
        token: str | None = self._tokenizer.id_to_token(id)
        return None if token in self.special_names else token

    def hidden_text(self, id: int) -> str:
        """The name of a special token, which `decode` leaves out; '' for others."""
        token: str | None = self._tokenizer.id_to_token(id)
        return token if token is not None and token in self.special_names else ""

    def byte(self, token: str) -> bytes | None:
        """That of a SentencePiece byte token such as <0x0A>."""
        found = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        return None if found is None else bytes.fromhex(found[1])

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to a text that has begun. Of an added token its name; b'' for ids that are unknown."""
        token: str | None = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if id in self._added:
            return token.encode()
        if self.is_byte_level:
            return byte_level_bytes(token)
        byte = self.byte(token)
        if byte is not None:
            return byte
        before = self._begun
        return self.decode([*before, id])[len(self.decode(before)) :].encode()

    @cached_property
    def _begun(self) -> list[int]:
        """A word for a text to begin with: the first token of a text often loses a space."""
        words = sorted((len(token), id) for token, id in self._tokenizer.get_vocab(with_added_tokens=False).items())
        return next(([id] for _, id in words if self.decode([id]).isalpha()), [])


class StreamDecoder:
    """Turns tokens into text one at a time, holding back bytes that are not yet a whole character. For any sequence of
    ids, all that comes back is together `decode` of all of them."""

    # In other than byte-level vocabularies a token's text can depend on those before it (spaces), so a few are decoded
    # again each time; decoding the whole answer again would be quadratic.
    _CONTEXT_TOKENS = 4

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, id: int) -> str:
        """Text that became certain with this token; '' while a character is incomplete."""
        token = self._decoding.token(id)
        if token is None:
            return ""
        if self._decoding.is_byte_level:
            return self._utf8.decode(byte_level_bytes(token))
        self._pending.append(id)
        if self._decoding.byte(token) is not None:
            return ""  # one that is wrong makes all of a run wrong, so only its end tells
        text = self._new_text()
        if self._decoding.is_partly_byte_level and text.endswith("\ufffd"):
            return ""
        self._context = (self._context + self._pending)[-self._CONTEXT_TOKENS :]
        self._pending = []
        return text

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._new_text() if self._pending else ""
        self._pending = []
        return text + self._utf8.decode(b"", final=True)

    def _new_text(self) -> str:
        before = self._decoding.decode(self._context)
        return self._decoding.decode(self._context + self._pending)[len(before) :]


def byte_level_bytes(token: str) -> bytes:
    """The bytes for which the characters of a byte-level vocabulary stand; other characters make a token plain text."""
    table = _byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode()


def _kinds(decoder: Any) -> frozenset[str]:
    """Of a decoder in a tokenizer.json and those that it is made of."""
    if decoder is None:
        return frozenset()
    return frozenset([decoder["type"]]).union(*map(_kinds, decoder.get("decoders", []))) - {"Sequence"}


@cache
def _byte_of_character() -> Mapping[str, int]:
    """Byte-level vocabularies (as GPT-2's) write printable Latin-1 as itself and the other bytes from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
