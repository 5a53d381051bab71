"""/v1/embeddings through the official client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from running import NAME, Running

TEXTS = ["The sea was calm.", "It was night."]


def test_texts_come_back_as_the_model_s_own_vectors_in_either_encoding(client: OpenAI, server: Running) -> None:
    expected = server.llm.embed(TEXTS)
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client.embeddings.create(model=NAME, input=TEXTS, **encoding)  # type: ignore[call-overload]
        vectors = [np.array(one.embedding) for one in found.data]  # the client itself asks for base64 unless told
        if encoding.get("encoding_format") == "base64":
            raw = server.post("/v1/embeddings", input=TEXTS, encoding_format="base64").json()["data"]
            assert all(isinstance(one["embedding"], str) for one in raw)
            continue
        assert np.array_equal(np.array(vectors, np.float32), expected)
        tokens = sum(len(server.llm.tokenizer.encode_prompt(text)) for text in TEXTS)
        assert [one.index for one in found.data] == [0, 1] and found.model == NAME
        assert found.usage.prompt_tokens == found.usage.total_tokens == tokens


def test_token_ids_a_single_text_and_the_last_token_s_state(client: OpenAI, server: Running) -> None:
    ids = [server.llm.tokenizer.encode_prompt(text) for text in TEXTS]
    expected = server.llm.embed(TEXTS, pooling="last")
    last = {"pooling": "last"}
    several = client.embeddings.create(model=NAME, input=ids, extra_body=last)
    assert np.array_equal(np.array([one.embedding for one in several.data], np.float32), expected)
    for one in (ids[0], TEXTS[0]):
        found = client.embeddings.create(model=NAME, input=one, extra_body=last)
        assert np.array_equal(np.array(found.data[0].embedding, np.float32), expected[0])


def test_more_texts_than_may_wait_are_taken(server: Running) -> None:
    found = server.post("/v1/embeddings", input=["x"] * 70, encoding_format="base64").json()
    assert [one["index"] for one in found["data"]] == list(range(70))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "x", "dimensions": 7}, "dimensions: this model's embeddings have"),
        ({"input": []}, "input: expected 1 to 2048 texts"),
        ({"input": ["x", ""]}, "input.1: expected text"),
        ({"input": "x " * 4000}, "context: "),
        ({"input": [10**8]}, "prompt: token id"),
        ({"input": "x", "pooling": "max"}, "pooling: "),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format: "),
    ],
)
def test_what_can_t_be_embedded_is_refused_in_one_line(client: OpenAI, body: dict[str, Any], said: str) -> None:
    more = {"pooling": body.pop("pooling")} if "pooling" in body else None
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(model=NAME, extra_body=more, **body)
    message = caught.value.body["message"]  # type: ignore[index]
    assert message.startswith(said) and "\n" not in message
    full = {"model": NAME, "input": "x", "dimensions": None}
    assert client.embeddings.create(**full).data
