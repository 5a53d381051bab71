from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_config

from smallthinker.errors import TokenizerError
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.text.tokenizer import Tokenizer

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    for name, content in byte_tokenizer_files(tiny_config()).items():
        (path / name).write_bytes(content)
    return path


@given(text=st.text(max_size=40))
def test_streamed_tokens_give_the_text_and_never_half_a_character(folder: Path, text: str) -> None:
    text = text.replace("<", "")  # no special tokens
    tokenizer = Tokenizer(folder, 300)
    decoder = tokenizer.stream()
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.finish() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_come_out_as_replacement_characters(folder: Path) -> None:
    tokenizer = Tokenizer(folder, 300)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    decoder = tokenizer.stream()
    text = "".join(decoder.push(vocab["ÿ"]) for _ in range(20)) + decoder.finish()
    assert set(text) == {"\ufffd"}


def test_ids_that_the_tokenizer_lacks_decode_to_nothing(folder: Path) -> None:
    assert Tokenizer(folder, 300).decode([297, 299]) == ""


def test_special_tokens_in_a_prompt_are_single_ids_where_that_is_asked_for(folder: Path) -> None:
    tokenizer = Tokenizer(folder, 300)
    assert tokenizer.encode("<|endoftext|>", special_tokens=True) == [298]
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b")) == "a<|endoftext|>b"


def test_what_a_trainer_set_for_its_batches_neither_cuts_nor_fills_a_prompt(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
    raw["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    text = "longer than four tokens"
    assert Tokenizer(tmp_path, 300).encode(text) == Tokenizer(folder, 300).encode(text)


def test_the_chat_template_ends_ready_for_an_answer(folder: Path) -> None:
    text = Tokenizer(folder, 300).render_chat([{"role": "user", "content": "Hello?"}])
    assert text == "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat_template failed"),  # out of the sandbox
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "not a valid template"),
        (7, "expected a template text"),
    ],
)
def test_a_bad_chat_template_is_one_clear_error(folder: Path, tmp_path: Path, template: object, expected: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(TokenizerError, match=expected):
        Tokenizer(tmp_path, 300).render_chat([{"role": "user", "content": "x"}])


def test_missing_broken_and_foreign_tokenizers_are_errors_with_the_path(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not found"):
        Tokenizer(tmp_path, 300)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path, 300)
    with pytest.raises(TokenizerError, match="outside the model's vocabulary of 280"):
        Tokenizer(folder, 280)


def test_what_loading_takes_for_a_moment_is_given_back(tmp_path: Path, run_python: Run) -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst" for c in range(100, 300)]
    raw = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    script = """
import sys
from pathlib import Path
from smallthinker import host
from smallthinker.text.tokenizer import Tokenizer
tokenizer = Tokenizer(Path(sys.argv[1]), 80_000)
held = host.resident_bytes()
host.trim_heap()
print(held - host.resident_bytes())
"""
    assert int(run_python(script, tmp_path).stdout) < 1 << 20
