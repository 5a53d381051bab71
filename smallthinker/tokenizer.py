"""Text to token ids and back, and chat messages to text.

Wraps the `tokenizers` library; `chat_template` makes one text of messages. Knows nothing about models beyond the size
of their vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypedDict

from smallthinker.chat_template import ChatTemplate, load_chat_template
from smallthinker.errors import TokenizerError


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class Tokenizer:
    """The tokenizer of a store: `tokenizer.json` and, for the chat template, `tokenizer_config.json`."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Raises TokenizerError when a file is missing, broken or has ids outside the model's vocabulary."""
        from tokenizers import Tokenizer as HFTokenizer  # 30 ms of import that `inspect` and `--help` do without

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{path}: not found; a store needs the tokenizer.json of its model")
        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as e:  # the library raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer that the tokenizers library can load: {e}") from None
        # what a trainer set for its batches would cut or fill up every prompt
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocab_size:
            raise TokenizerError(
                f"{path}: token id {highest} is outside the model's vocabulary of {vocab_size}; "
                "the tokenizer belongs to another model"
            )
        self.vocab_size = vocab_size
        self._folder = folder

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, special tokens in it recognised, none added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and of each token the characters [start, end) of the text that it comes from. Tokens that share
        a character, each with some of its bytes, have spans that overlap."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids. Special tokens, and ids that the tokenizer doesn't know, decode to nothing."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to a text: perhaps a part of a character. Of a special token its name; b'' for ids that the
        tokenizer doesn't know."""
        token: str | None = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if id in self.added_tokens or not self._is_byte_level:
            return token.encode("utf-8")
        return bytes(_byte_of_character()[character] for character in token)

    @cached_property
    def added_tokens(self) -> Mapping[int, bool]:
        """Ids that stand for one fixed text each, and whether they are left out of what `decode` gives."""
        return {id: bool(token.special) for id, token in self._tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in str(self._tokenizer.decoder)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises TokenizerError when the store has none, or a broken one."""
        return load_chat_template(self._folder)

    def render_chat(self, messages: Iterable[Message | Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that the model's chat template makes of the messages, ready for the assistant's answer.

        variables: what else the template asks for (`tools`, `enable_thinking`). Raises TokenizerError.
        """
        return self.chat_template.render(messages, variables)


class StreamDecoder:
    """Turns tokens into text one at a time, holding back bytes that are not yet a whole character."""

    # A token's text can depend on those before it (spaces, half characters), so a few are decoded again each time;
    # decoding the whole answer again would be quadratic.
    _CONTEXT_TOKENS = 4

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Text that became certain with this token; '' while a character is incomplete."""
        self._pending.append(token)
        text = self._new_text()
        # U+FFFD at the end: bytes of a character still to come. No character has over four bytes: longer is garbage.
        if text.endswith("\ufffd") and len(self._pending) < 8:
            return ""
        self._context = (self._context + self._pending)[-self._CONTEXT_TOKENS :]
        self._pending = []
        return text

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._new_text() if self._pending else ""
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]


@cache
def _byte_of_character() -> Mapping[str, int]:
    """Byte-level vocabularies (as GPT-2's) write printable Latin-1 as itself and the other bytes from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
