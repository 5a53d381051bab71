"""Pieces of an answer are together its text, whatever the ids, and none of them shows half a character."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import FAMILIES, write
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models

from smallthinker.text.decoding import Decoding, StreamDecoder
from smallthinker.text.tokenizer import Tokenizer

VOCAB = 1000  # of the model: more than any of the tokenizers has


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer(write(make(), folder / name), VOCAB) for name, make in FAMILIES.items()}


def streamed(decoder: StreamDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.push(id) for id in ids), decoder.finish()]


@cache
def some_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any, and enough of those that are a byte each."""
    single = [id for id in range(VOCAB) if len(tokenizer.token_bytes(id)) == 1] or [0]
    return st.lists(st.integers(0, VOCAB - 1) | st.sampled_from(single), max_size=40)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_the_pieces_of_any_ids_are_together_what_all_of_them_decode_to(
    tokenizers: dict[str, Tokenizer], family: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[family]
    ids = data.draw(some_ids(tokenizer))
    assert "".join(streamed(tokenizer.stream(), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
@given(text=st.text(max_size=30))
def test_the_pieces_of_a_text_never_show_half_a_character(
    tokenizers: dict[str, Tokenizer], family: str, text: str
) -> None:
    tokenizer = tokenizers[family]
    pieces = streamed(tokenizer.stream(), tokenizer.encode(text))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_after_many_bytes_of_garbage_is_whole(tokenizers: dict[str, Tokenizer]) -> None:
    for family in ("byte_level", "sentencepiece"):
        tokenizer = tokenizers[family]
        byte = {tokenizer.token_bytes(id): id for id in reversed(range(VOCAB))}
        word = max(id for id in range(VOCAB) if tokenizer.token_bytes(id) == b"a")  # not the byte token
        garbage, euro = [byte[b"\xff"]] * 20, [byte[bytes([b])] for b in "€".encode()]
        pieces = streamed(tokenizer.stream(), [*garbage, word, *euro, word])
        assert "".join(pieces) == "\ufffd" * 20 + "a€a"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.Replace("x", "é"), decoders.ByteLevel()]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ],
    ids=str,
)
@given(ids=st.lists(st.integers(0, 13), max_size=30))
def test_the_pieces_are_the_text_with_decoders_that_are_rarer(decoder: decoders.Decoder | None, ids: list[int]) -> None:
    words = ["a", "▁b", "##c", "d</w>", "Ġ", "Ã", "©", "é", "x", "<0xE2>", "<0x82>", "<0xac>", ".", "\ufffd"]
    tokenizer = HFTokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    pieces = streamed(StreamDecoder(Decoding(tokenizer)), ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_token_has_the_bytes_that_it_adds_to_a_text(tokenizers: dict[str, Tokenizer]) -> None:
    for family in ("byte_level", "sentencepiece"):
        tokenizer = tokenizers[family]
        first, *ids = tokenizer.encode("x the naïve cat\n日本")
        assert b"".join(tokenizer.token_bytes(id) for id in [first, *ids]).decode().lstrip() == "x the naïve cat\n日本"
    names = FAMILIES["sentencepiece"]().get_vocab()
    assert tokenizers["sentencepiece"].token_bytes(names["<0x0A>"]) == b"\n"
    assert tokenizers["sentencepiece"].token_bytes(names["▁"]) == b" "
    assert tokenizers["sentencepiece"].token_bytes(names["<|im_end|>"]) == b"<|im_end|>"
    assert tokenizers["sentencepiece"].token_bytes(VOCAB - 1) == b""


def test_a_long_answer_decodes_each_token_a_few_times_only(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = Decoding.decode
    monkeypatch.setattr(Decoding, "decode", lambda self, ids: decoded.append(len(ids)) or decode(self, ids))
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("the cat 日本 sat. " * 50)
        decoded.clear()
        streamed(tokenizer.stream(), ids)
        assert sum(decoded) <= 12 * len(ids)
