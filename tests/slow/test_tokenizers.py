"""Real vocabularies, which the project doesn't have: give their folders, or these tests are skipped.

SMALLTHINKER_VOCABULARIES: llama.cpp's `models` folder, with its ggml-vocab-*.gguf and the texts and ids beside them.
SMALLTHINKER_TOKENIZERS: a folder of folders with a tokenizer.json each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from many_texts import many_texts
from tokenizers import Tokenizer as HFTokenizer

from smallthinker.expert_store.sources.gguf_header import read_gguf_header
from smallthinker.expert_store.sources.gguf_tokenizer.models import MODELS
from smallthinker.expert_store.sources.gguf_tokenizer.tokenizer import GgufTokenizer
from smallthinker.expert_store.sources.gguf_tokenizer.words import WORDS
from smallthinker.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
SEPARATOR = "\n__ggml_vocab_test__\n"
COUNT = 20_000


def folder(variable: str, what: str) -> Path:
    found = os.environ.get(variable)
    if not found:
        pytest.skip(f"{variable}: expected {what}, found nothing")
    return Path(found)


def metadata_of(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        return read_gguf_header(file, str(path), path.stat().st_size).metadata


def test_vocabularies_of_gguf_files_give_the_ids_beside_them() -> None:
    paths = sorted(folder("SMALLTHINKER_VOCABULARIES", "llama.cpp's models folder").glob("ggml-vocab-*.gguf"))
    compared = []
    for path in paths:
        metadata = metadata_of(path)
        model, words = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
        texts, ids = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
        if not ids.exists() or model not in MODELS or (model == "gpt2" and words not in WORDS):
            continue
        made = HFTokenizer.from_buffer(GgufTokenizer(metadata, str(path)).files()["tokenizer.json"])
        inputs = texts.read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
        for text, expected in zip(inputs, ids.read_text().splitlines(), strict=True):
            if made.normalizer is None or model != "gpt2" or made.normalizer.normalize_str(text) == text:
                # llama.cpp doesn't compose characters, as the originals do
                found = made.encode(text, add_special_tokens=False).ids
                assert found == [int(id) for id in expected.split()], f"{path.name}: {text!r}"
                assert made.decode(found) == text
        compared.append(path.name)
    assert compared


def test_encoding_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    paths = sorted(folder("SMALLTHINKER_TOKENIZERS", "a folder of tokenizers' folders").glob("*/tokenizer.json"))
    assert paths
    for path in paths:
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        ours = Tokenizer(path.parent, 1 << 20)
        words = [token for token in theirs.get_vocab() if token.isalpha() and token.isascii()]
        for text in many_texts(COUNT, words):
            ids = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text, special_tokens=True) == ids, f"{path}: {text!r}"
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), f"{path}: {text!r}"
