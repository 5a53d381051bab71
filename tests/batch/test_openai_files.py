"""OpenAI's batch files: what comes out is what its own types take, a request's fault is in its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from tiny_models import make_store, tiny_config

from smallthinker import LLM
from smallthinker.batch.job import row_seed
from smallthinker.cli import main

MESSAGES = [{"role": "user", "content": "Say it"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tiny_config(head_dim=32), tmp_path_factory.mktemp("openai"), "q4_0")[0]


def request(id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": id, "method": "POST", "url": url, "body": {"model": "gpt-4o-mini", **body}}


def answered(model: Path, folder: Path, requests: list[Any], *options: str) -> tuple[int, list[dict[str, Any]]]:
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
    code = main(["batch", str(model), str(folder / "in.jsonl"), str(folder / "out.jsonl"), *options])
    out = folder / "out.jsonl"
    return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_every_endpoint_answers_as_the_official_types_have_it(model: Path, tmp_path: Path) -> None:
    requests = [
        request("chat", "/v1/chat/completions", messages=MESSAGES, max_tokens=4),
        request("text", "/v1/completions", prompt="Once", max_tokens=4, stream=True),
        request("response", "/v1/responses", input="Say it", max_output_tokens=4),
        request("vector", "/v1/embeddings", input="Say it"),
        request("wrong", "/v1/chat/completions", messages=[], temperature=-1),
    ]
    code, lines = answered(model, tmp_path, requests)
    assert code == 1
    assert [line["custom_id"] for line in lines] == [one["custom_id"] for one in requests]
    assert len({line["id"] for line in lines}) == len({line["response"]["request_id"] for line in lines}) == 5
    for line, type in zip(lines, (ChatCompletion, Completion, Response, CreateEmbeddingResponse), strict=False):
        assert set(line) == {"id", "custom_id", "response", "error"} and line["error"] is None
        assert line["response"]["status_code"] == 200
        type.model_validate(line["response"]["body"], strict=True)
    assert lines[4]["response"]["status_code"] == 400
    assert "temperature" in lines[4]["response"]["body"]["error"]["message"]
    with LLM(model) as llm:
        alone = llm.generate("Once", max_tokens=4, seed=row_seed(0, 1) >> 1)
    assert lines[1]["response"]["body"]["choices"][0]["text"] == alone.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"custom_id": 7}, "request 2: custom_id: expected text, found 7"),
        ({"custom_id": "a"}, "request 2: custom_id: 'a' is there twice"),
        ({"method": "GET"}, "request 2: method: expected POST, found 'GET'"),
        ({"url": "/v1/images"}, "request 2: url: expected /v1/chat/completions"),
        ({"body": "text"}, "request 2: body: expected an object"),
    ],
)
def test_a_file_with_a_request_that_is_none_is_refused_as_a_whole(
    model: Path, tmp_path: Path, change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = request("a", "/v1/chat/completions", messages=MESSAGES)
    assert answered(model, tmp_path, [one, one | {"custom_id": "b"} | change]) == (2, [])
    assert says in capsys.readouterr().err


def test_options_that_each_body_has_of_its_own_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = request("a", "/v1/chat/completions", messages=MESSAGES)
    assert answered(model, tmp_path, [one], "--temperature", "0")[0] == 2
    assert "--temperature: a batch file of OpenAI's says that in each body" in capsys.readouterr().err
