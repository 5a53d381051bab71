"""Text to token ids and back, and chat messages to text.

Wraps the `tokenizers` library, or a vocabulary that is packed; `chat_template` makes one text of messages, `plain_text`
keeps what users wrote in it plain, `decoding` makes text of tokens. Knows nothing about models beyond the size of their
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from smallthinker import host
from smallthinker.errors import TokenizerError, one_line
from smallthinker.files import SmallFiles, is_there
from smallthinker.text import packed_vocabulary
from smallthinker.text.chat_template import ChatTemplate, NoChatTemplateError, load_chat_template
from smallthinker.text.decoding import Decoding, StreamDecoder
from smallthinker.text.packed_tokenizer import PackedTokenizer, agree
from smallthinker.text.packed_vocabulary import Hints, PackedVocabulary
from smallthinker.text.panics import panics_as_errors, tokenizer_faults
from smallthinker.text.plain_text import ControlTokens, PlainText, Spans

_LOADING_BYTES = 24 << 20  # and 9 to 12 times the file, seen while the library loads one


class Tokenizer:
    """The tokenizer of a store: `tokenizer.json` and, for the chat template, `tokenizer_config.json`."""

    def __init__(self, files: Path | SmallFiles, vocab_size: int, hints: Hints | None = None) -> None:
        """files: or the folder that they are in. hints: where a large vocabulary is kept packed from the first start on
        (`packed_vocabulary`). Raises TokenizerError when one is missing, broken or has ids outside the model's
        vocabulary."""
        self._files = files = SmallFiles(files) if isinstance(files, Path) else files
        self.vocab_size = vocab_size
        path = files.path("tokenizer.json")
        try:
            kept = None if hints is None else self._kept(path, hints)
            self._tokenizer = kept or self._made(path, files.read("tokenizer.json"), hints)
        except FileNotFoundError:
            raise TokenizerError(f"{path}: not found; a store needs the tokenizer.json of its model") from None
        except OSError as e:
            raise TokenizerError(f"{path}: cannot read the tokenizer: {e.strerror or e}") from None
        host.trim_heap()  # of 105 MiB that loading Qwen's leaves, 50 are in use, or 6 where it is packed
        self._decoding = Decoding(self._tokenizer)
        self._control = ControlTokens(self._tokenizer)

    def _library_tokenizer(self, path: Path, raw: bytes) -> Any:
        """The library's, checked against the model's vocabulary."""
        from tokenizers import Tokenizer as HFTokenizer  # 30 ms of import that `inspect` and `--help` do without

        host.check_address_space(_LOADING_BYTES + 12 * len(raw))
        try:
            with panics_as_errors():
                tokenizer = HFTokenizer.from_buffer(raw)
        except Exception as e:  # the library raises bare Exception
            why = one_line(str(e), 200)
            raise TokenizerError(f"{path}: not a tokenizer that the tokenizers library can load: {why}") from None
        # what a trainer set for its batches would cut or fill up every prompt
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # all its words at once would be 150,000 strings, and their memory doesn't all come back
        known = sum(tokenizer.id_to_token(id) is not None for id in range(self.vocab_size))
        if known < tokenizer.get_vocab_size(with_added_tokens=True):
            raise self._outside(path, max(tokenizer.get_vocab(with_added_tokens=True).values()))
        return tokenizer

    def _outside(self, path: Path, id: int) -> TokenizerError:
        return TokenizerError(
            f"{path}: token id {id} is outside the model's vocabulary of {self.vocab_size}; "
            "the tokenizer belongs to another model"
        )

    def _kept(self, path: Path, hints: Hints) -> PackedTokenizer | None:
        """What an earlier start left of it, if it did."""
        packed = hints.hint_path(packed_vocabulary.FILE_NAME)
        if not is_there(packed):
            return None
        vocabulary = packed_vocabulary.load(packed, self._files.digest("tokenizer.json"))
        if vocabulary is not None and vocabulary.size > self.vocab_size:
            raise self._outside(path, vocabulary.size - 1)
        return None if vocabulary is None else _checked(vocabulary)

    def _made(self, path: Path, raw: bytes, hints: Hints | None) -> Any:
        """The library's tokenizer, or one that packs it and makes the same of every text that is tried."""
        vocabulary = None
        if hints is not None and len(raw) >= packed_vocabulary.LEAST_BYTES and packed_vocabulary.can_be_kept(hints):
            with suppress(ValueError, KeyError, TypeError):  # the library will say what is wrong
                vocabulary = packed_vocabulary.pack(raw)
            host.trim_heap()  # one after the other takes no more than the library alone
        tokenizer = self._library_tokenizer(path, raw)
        if hints is None or vocabulary is None:
            return tokenizer
        packed = None
        with suppress(TokenizerError):
            vocabulary = replace(vocabulary, beginning=_beginning(tokenizer))
            packed = _checked(vocabulary)
        if packed is None or not agree(packed, tokenizer):
            return tokenizer
        packed_vocabulary.save(vocabulary, self._files.digest("tokenizer.json"), hints)
        return packed

    @tokenizer_faults("encode a text")
    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids of the text, none added. special_tokens: their names in it stand for them; else they are plain
        text, as all else."""
        if not special_tokens:
            return self.encode_with_spans(text)[0]
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """As `encode`, behind what the model's texts begin with (`<s>`, `<bos>`) where they don't have it already.
        Chat templates write it themselves."""
        ids = self.encode(text, special_tokens=special_tokens)
        return ids if ids[: len(self.beginning)] == self.beginning else [*self.beginning, *ids]

    @cached_property
    def beginning(self) -> list[int]:
        """What the tokenizer puts before every text: mostly nothing, or one token."""
        if isinstance(self._tokenizer, PackedTokenizer):
            return self._tokenizer.beginning
        return _beginning(self._tokenizer)

    def encode_with_spans(self, text: str) -> tuple[list[int], Spans]:
        """As `encode`, and of each token the characters [start, end) of the text that it comes from. Tokens that share
        a character, each with some of its bytes, have spans that overlap."""
        plain = self.plain_text()
        return plain.encode(plain.protect(text))

    def plain_text(self, also: Iterable[str] = ()) -> PlainText:
        """What keeps users' strings plain in one prompt. also: see PlainText."""
        return PlainText(self._control, also)

    def first_difference(self, other: Tokenizer) -> tuple[int, str | None, str | None] | None:
        """The first token that is one text here and another one there, with both; what only one of them has is none,
        since files fill up vocabularies in their own ways."""
        for id in range(min(self.vocab_size, other.vocab_size)):
            ours, theirs = self._tokenizer.id_to_token(id), other._tokenizer.id_to_token(id)
            if ours != theirs and ours is not None and theirs is not None:
                return id, ours, theirs
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids. Special tokens, and ids that the tokenizer doesn't know, decode to nothing."""
        return self._decoding.decode(ids)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self._decoding)

    def hidden_text(self, id: int) -> str:
        """The name of a special token, which `decode` leaves out; '' for others."""
        return self._decoding.hidden_text(id)

    @property
    def special_names(self) -> frozenset[str]:
        """All that `hidden_text` may give."""
        return self._decoding.special_names

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to a text that has begun: perhaps a part of a character. Of an added token its name; b''
        for ids that the tokenizer doesn't know."""
        return self._decoding.token_bytes(id)

    def ids_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Of those names that added tokens have."""
        known = {token.content: id for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        return tuple(known[name] for name in names if name in known)

    @cached_property
    def added_tokens(self) -> Mapping[int, bool]:
        """Ids that stand for one fixed text each, and whether they are left out of what `decode` gives."""
        return {id: bool(token.special) for id, token in self._tokenizer.get_added_tokens_decoder().items()}

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises TokenizerError when the store has none, or a broken one."""
        if isinstance(self._chat_template, TokenizerError):
            raise type(self._chat_template)(*self._chat_template.args)
        return self._chat_template

    @property
    def has_chat_template(self) -> bool:
        """Whether there is one, be it a broken one."""
        return not isinstance(self._chat_template, NoChatTemplateError)

    @cached_property
    def _chat_template(self) -> ChatTemplate | TokenizerError:
        try:
            return load_chat_template(self._files)
        except TokenizerError as e:
            return e

    def render_chat(self, messages: Iterable[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that the model's chat template makes of the messages, ready for the assistant's answer.

        variables: what else the template asks for (`tools`, `enable_thinking`). Raises TokenizerError.
        """
        return self.chat_template.for_tools(variables.get("tools")).render(messages, variables)


def _beginning(tokenizer: Any) -> list[int]:
    with tokenizer_faults("encode a text"):
        encoding = tokenizer.encode("a", add_special_tokens=True)
    added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [id for id, _ in takewhile(lambda token: token[1], added)]


def _checked(vocabulary: PackedVocabulary) -> PackedTokenizer | None:
    """None where it contradicts itself."""
    try:
        with panics_as_errors():
            return PackedTokenizer(vocabulary)
    except Exception:  # the library raises bare Exception
        return None
