"""A tokenizer.json that loads and then makes the library fail, or panic: one of our errors, never its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import byte_level

from smallthinker.errors import TokenizerError
from smallthinker.text.panics import panics_as_errors
from smallthinker.text.tokenizer import Tokenizer


def broken(folder: Path, **parts: Any) -> Tokenizer:
    raw = json.loads(byte_level().to_str()) | parts
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return Tokenizer(folder, 1000)


WORD_PIECE = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    "vocab": {"a": 0, "##a": 1},
}  # fmt: skip


def test_a_vocabulary_without_its_unknown_token_is_one_line_where_it_is_missed(tmp_path: Path) -> None:
    tokenizer = broken(tmp_path, model=WORD_PIECE, added_tokens=[])
    for special_tokens in (False, True):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot encode a text: .*UNK") as caught:
            tokenizer.encode("zebra", special_tokens=special_tokens)
        assert "\n" not in str(caught.value)


def test_a_panic_of_the_library_is_an_error_and_other_endings_stay_what_they_are() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(ValueError, match="out of bounds"), panics_as_errors():
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt


def test_a_decoder_that_panics_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    model = {"type": "BPE", "continuing_subword_prefix": "######", "vocab": {"a": 0, "b": 1, "ab": 2}}
    model |= {"merges": [["a", "b"]], "dropout": None, "unk_token": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    with pytest.raises(TokenizerError, match="not a tokenizer that the tokenizers library can load"):
        broken(tmp_path, model=model, added_tokens=[])
