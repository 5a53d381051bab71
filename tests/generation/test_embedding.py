"""A text as one vector: what the reference's final states are, whatever else is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker import LLM, AsyncLLM
from smallthinker.errors import CancelledError, ContextLengthError, RequestError
from smallthinker.generation.answer import GenerationParams
from smallthinker.llm import DEMO_STORE, embedding_of

TEXTS = ["The sea was calm.", "It was a dark and stormy night; the rain fell in torrents, except at intervals.", "x"]
SMALL: dict[str, Any] = {"context": 256, "threads": 1}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(sequences=2, **SMALL) as llm:
        yield llm


def bits(found: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in found]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_it_is_what_the_reference_computes(tmp_path: Path, pooling: Any) -> None:
    store, model = make_store(tiny_config(**HYBRID_ATTENTION), tmp_path, "f16")
    with LLM(store, max_slots=4, chunk=7, **SMALL) as llm:
        found = llm.embed(TEXTS, pooling=pooling)
        ids = [llm.tokenizer.encode_prompt(text) for text in TEXTS]
    with torch.no_grad():
        states = [model.hidden(torch.tensor([prompt]))[0][0] for prompt in ids]
    expected = torch.stack([s[-1] if pooling == "last" else s.mean(0) for s in states])
    expected = torch.nn.functional.normalize(expected)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose((found * expected.numpy()).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_it_is_the_same_bits_whatever_the_chunk_and_whatever_else_is_computed(llm: LLM, pooling: Any) -> None:
    expected = bits(llm.embed(TEXTS, pooling=pooling))
    assert bits(llm.embed(TEXTS, pooling=pooling)) == expected
    assert [bits(llm.embed(text, pooling=pooling))[0] for text in TEXTS] == expected
    with llm.stream("Once upon", max_tokens=60, ignore_eos=True, seed=1) as stream:
        next(stream)
        assert bits(llm.embed(TEXTS[::-1], pooling=pooling)) == expected[::-1]
    for options in ({"chunk": 3}, {"chunk": 16, "max_slots": 8, "speculation": "off"}):
        with LLM(**SMALL, **options) as another:
            assert bits(another.embed(TEXTS, pooling=pooling)) == expected


def test_an_answer_is_the_same_text_beside_embeddings_and_after_them(llm: LLM) -> None:
    options: Any = {"max_tokens": 30, "seed": 1, "ignore_eos": True}
    expected = llm.generate("The captain", **options)
    llm.embed("The captain")
    stream = llm.stream("The captain", **options)
    llm.embed(TEXTS)
    assert "".join(stream) == expected.text
    for text in TEXTS:  # one at a time takes the place of one conversation
        llm.embed(text)
    assert llm.generate(f"The captain{expected.text}", **options).stats.reused_tokens > 20


def test_more_texts_than_may_wait_are_embedded_one_after_another() -> None:
    with LLM(max_waiting=1, **SMALL) as llm:
        assert llm.embed([*TEXTS, *TEXTS]).shape == (6, llm.config.hidden_size)
        assert llm.embed([]).shape == (0, llm.config.hidden_size)


def test_what_can_t_be_embedded_is_refused_before_anything_is_computed(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"^texts\.1: expected text, found nothing"):
        llm.embed(["x", ""])
    with pytest.raises(RequestError, match=r"^pooling: expected mean or last"):
        llm.embed("x", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^texts: "):
        llm.embed([1])  # type: ignore[list-item]
    with pytest.raises(ContextLengthError, match="context"):
        llm.embed("the sea " * 300)
    assert llm.scheduler.stats().waiting == 0


def test_one_that_is_cancelled_has_no_vector(llm: LLM) -> None:
    request = llm.scheduler.submit([1] * 200, GenerationParams(), pooling="mean", timeout_sec=1e-9)
    with pytest.raises(CancelledError, match="timeout"):
        embedding_of(request.result())


def test_an_event_loop_gets_the_same(llm: LLM) -> None:
    assert bits(asyncio.run(AsyncLLM(llm).embed(TEXTS))) == bits(llm.embed(TEXTS))


def test_texts_that_share_words_are_nearer() -> None:
    with LLM(DEMO_STORE, **SMALL) as llm:
        a, b, c = llm.embed(["The ship sailed over the sea.", "The ship sailed over the ocean.", "She laughed at him."])
    assert a @ b > a @ c
