"""A packed tokenizer is the library's, token for token; what is kept of it may be deleted, damaged or another's."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_vocabularies
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from many_texts import many_texts
from tokenizer_files import CONTROL, FAMILIES, SPACES, byte_level, write
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from smallthinker.errors import TokenizerError
from smallthinker.files import write_hint
from smallthinker.text import packed_vocabulary
from smallthinker.text.packed_tokenizer import PackedTokenizer, agree
from smallthinker.text.packed_vocabulary import FILE_NAME, pack
from smallthinker.text.tokenizer import Tokenizer

VOCAB = 1000
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def with_sides() -> HFTokenizer:
    """As Phi-3's: control tokens that take the spaces beside them; and one that is a word of its own only."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|sys|>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("cat", single_word=True, normalized=False)])
    return tokenizer


MADE = {
    "byte_level": byte_level,
    "sentencepiece": FAMILIES["sentencepiece"],
    "with sides": with_sides,
    "ignores merges": lambda: gguf_vocabularies.byte_level(_BYTES, ignore_merges=True),
    "characters without words": gguf_vocabularies.gemma4,
}
PIECES = [
    *CONTROL,
    "<|end|>",
    "<|sys|>",
    "cat",
    "<|start|>",
    "<tool>",
    SPACES,
    " ",
    "\n",
    "é",
    "e\u0301",
    "日",
    "🦙",
    "▁",
    "\0",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)


class Folder:
    """Where hints are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hint_path(self, name: str) -> Path:
        return self.path / name

    def write_hint(self, name: str, data: bytes) -> bool:
        return write_hint(self.path / name, data)


@pytest.fixture(scope="module", params=MADE)
def both(request: pytest.FixtureRequest) -> tuple[PackedTokenizer, HFTokenizer]:
    library = MADE[request.param]()
    vocabulary = pack(library.to_str().encode())
    assert vocabulary is not None
    return PackedTokenizer(vocabulary), library


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(packed_vocabulary, "LEAST_BYTES", 0)
    write(byte_level(), tmp_path)
    return Folder(tmp_path)


def is_packed(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer._tokenizer, PackedTokenizer)


@given(TEXTS)
@example(" <|sys|>")
@example("the cat<|end|> \n sat <|sys|> x")
def test_tokens_and_offsets_are_the_librarys(both: tuple[PackedTokenizer, HFTokenizer], text: str) -> None:
    packed, library = both
    expected = library.encode(text, add_special_tokens=False)
    assert packed.encode(text) == (expected.ids, expected.offsets)


@given(st.lists(st.integers(0, VOCAB), max_size=20))
def test_text_of_any_tokens_is_the_librarys(both: tuple[PackedTokenizer, HFTokenizer], ids: list[int]) -> None:
    packed, library = both
    assert packed.decode(ids) == library.decode(ids, skip_special_tokens=True)
    assert list(map(packed.id_to_token, ids)) == list(map(library.id_to_token, ids))


def test_many_texts_of_many_scripts(both: tuple[PackedTokenizer, HFTokenizer]) -> None:
    packed, library = both
    for text in many_texts(300, ["cat", "sat", "mat"]):
        assert packed.encode(text).ids == library.encode(text, add_special_tokens=False).ids, text
    assert agree(packed, library)


def test_what_goes_beyond_plain_merges_is_left_to_the_library() -> None:
    assert pack(FAMILIES["unigram"]().to_str().encode()) is None
    assert pack(HFTokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str().encode()) is None
    normalized = byte_level()
    normalized.add_tokens([AddedToken("Ünder", normalized=True)])
    assert pack(normalized.to_str().encode()) is None
    assert pack(HFTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)).to_str().encode()) is None


def test_a_tokenizer_that_the_packed_one_does_not_equal_is_not_packed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedTokenizer, "decode", lambda self, ids, skip_special_tokens=True: "x")
    assert not is_packed(Tokenizer(folder.path, VOCAB, folder))
    assert not (folder.path / FILE_NAME).exists()


def test_the_second_start_takes_what_the_first_one_left(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Tokenizer(folder.path, VOCAB)
    first = Tokenizer(folder.path, VOCAB, folder)
    monkeypatch.setattr(Tokenizer, "_library_tokenizer", None)
    second = Tokenizer(folder.path, VOCAB, folder)
    text = "<|im_start|>the cat <think>é日\U0001f999 </s>"
    for tokenizer in first, second:
        assert is_packed(tokenizer)
        assert tokenizer.encode_with_spans(text) == plain.encode_with_spans(text)
        assert tokenizer.encode(text, special_tokens=True) == plain.encode(text, special_tokens=True)
        assert tokenizer.added_tokens == plain.added_tokens and tokenizer.special_names == plain.special_names
        assert all(tokenizer.token_bytes(id) == plain.token_bytes(id) for id in range(VOCAB))
        assert tokenizer.encode_prompt("x") == plain.encode_prompt("x")


def test_the_beginning_of_every_text_is_kept(folder: Folder) -> None:
    tokenizer = byte_level()
    raw = json.loads(tokenizer.to_str())
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [401], "tokens": ["<|im_start|>"]}},
    }
    (folder.path / "tokenizer.json").write_text(json.dumps(raw))
    expected = Tokenizer(folder.path, VOCAB).beginning
    assert expected == [401]
    assert [Tokenizer(folder.path, VOCAB, folder).beginning for _ in range(2)] == [expected, expected]


@given(st.data())
def test_a_damaged_file_is_made_again(packed_folder: Folder, data: st.DataObject) -> None:
    path = packed_folder.path / FILE_NAME
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] if data.draw(st.booleans()) else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.write_bytes(damaged)
    tokenizer = Tokenizer(packed_folder.path, VOCAB, packed_folder)
    assert tokenizer.encode("the cat") == Tokenizer(packed_folder.path, VOCAB).encode("the cat")
    assert path.read_bytes() == whole


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("packed"))
    write(byte_level(), folder.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_vocabulary, "LEAST_BYTES", 0)
        Tokenizer(folder.path, VOCAB, folder)
        yield folder


def test_another_tokenizer_in_its_place_is_seen(folder: Folder) -> None:
    Tokenizer(folder.path, VOCAB, folder)
    other = byte_level()
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("."), "isolated"), _BYTES])
    other.normalizer = normalizers.Lowercase()
    write(other, folder.path)
    tokenizer = Tokenizer(folder.path, VOCAB, folder)
    assert is_packed(tokenizer) and tokenizer.encode("The CAT") == Tokenizer(folder.path, VOCAB).encode("The CAT")


def test_one_for_another_model_is_refused_on_the_second_start_too(folder: Folder) -> None:
    Tokenizer(folder.path, VOCAB, folder)
    with pytest.raises(TokenizerError, match="outside the model's vocabulary of 280"):
        Tokenizer(folder.path, 280, folder)


def test_where_nothing_can_be_kept_the_library_serves(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_vocabulary.os, "access", lambda path, mode: False)
    assert not is_packed(Tokenizer(folder.path, VOCAB, folder))
    assert not (folder.path / FILE_NAME).exists()


def test_a_folder_that_is_still_to_be_made_is_no_hindrance(folder: Folder) -> None:
    hints = Folder(folder.path / "cache" / "model")
    assert is_packed(Tokenizer(folder.path, VOCAB, hints))
