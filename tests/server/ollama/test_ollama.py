"""Ollama's protocol, through its own Python client where that knows the endpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from running import MEMORY, NAME, Running, say, serving

import smallthinker
from smallthinker import LLM
from smallthinker.llm import DEMO_STORE

MESSAGES = [{"role": "user", "content": "Who is it?"}]
OPTIONS: dict[str, Any] = {"temperature": 0, "num_predict": 12}
CHAT: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "options": OPTIONS}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Riga"}}</tool_call>'


@pytest.fixture(scope="module")
def client(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def thinking_client(thinker: Running) -> ollama.Client:
    return ollama.Client(host=thinker.url)


def test_a_chat_s_answer_is_the_one_of_the_other_protocol(client: ollama.Client, server: Running) -> None:
    other = server.openai.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=12)  # type: ignore[arg-type]
    answer = client.chat(**CHAT)
    assert answer.message.content == other.choices[0].message.content
    assert other.usage is not None and answer.prompt_eval_count == other.usage.prompt_tokens
    assert answer.model == NAME and answer.done and answer.done_reason == "length" and answer.eval_count == 12
    assert answer.total_duration is not None and answer.prompt_eval_duration is not None
    assert answer.eval_duration is not None and answer.created_at is not None
    assert 1000 < answer.eval_duration < answer.total_duration
    assert answer.prompt_eval_duration + answer.eval_duration <= answer.total_duration


def test_a_chat_streams_the_same_piece_by_piece(client: ollama.Client) -> None:
    pieces = list(client.chat(**CHAT, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == client.chat(**CHAT).message.content
    assert len(pieces) > 5 and [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == 12 and pieces[-1].done_reason == "length"


def test_a_stream_is_what_is_meant_where_nothing_is_said(server: Running) -> None:
    response = server.post("/api/chat", **CHAT)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[-1]["done"] and "message" in lines[0]


def test_a_text_is_answered_in_the_template_and_continued_raw(client: ollama.Client, server: Running) -> None:
    asked = client.generate(model=NAME, prompt="Who is it?", options=OPTIONS)
    assert asked.response == client.chat(**CHAT).message.content
    with_system = client.generate(model=NAME, prompt="Who is it?", system="You tell of the sea.", options=OPTIONS)
    told = [{"role": "system", "content": "You tell of the sea."}, *MESSAGES]
    assert with_system.response == client.chat(**CHAT | {"messages": told}).message.content
    raw = client.generate(model=NAME, prompt="The sea was", raw=True, options=OPTIONS)
    assert raw.response == server.llm.generate("The sea was", temperature=0, max_tokens=12).text
    pieces = client.generate(model=NAME, prompt="The sea was", raw=True, options=OPTIONS, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == raw.response


def test_without_a_chat_template_a_text_is_continued_as_raw_does_and_a_chat_is_refused(tmp_path: Path) -> None:
    store = shutil.copytree(DEMO_STORE, tmp_path / "store")
    config = json.loads((store / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (store / "tokenizer_config.json").write_text(json.dumps(config))
    text: dict[str, Any] = {"model": NAME, "prompt": "The sea was", "options": OPTIONS}
    with LLM(store, memory=MEMORY, threads=1) as llm, serving(llm) as running:
        client = ollama.Client(host=running.url)
        assert client.generate(**text).response == client.generate(**text, raw=True).response
        assert "".join(piece.response or "" for piece in client.generate(**text, stream=True)) == (
            llm.generate("The sea was", temperature=0, max_tokens=12).text
        )
        for more in ({"system": "You tell of the sea."}, {"think": True}):
            with pytest.raises(ollama.ResponseError, match=f"^{next(iter(more))}: .* no chat template") as caught:
                client.generate(**text, **more)
            assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match="it has none; have it continue a text") as caught:
            client.chat(**CHAT)
        assert caught.value.status_code == 400 and "\n" not in caught.value.error


def test_every_option_acts(client: ollama.Client, server: Running) -> None:
    given: dict[str, Any] = {
        "temperature": 0.9,
        "top_k": 30,
        "top_p": 0.8,
        "min_p": 0.02,
        "repeat_penalty": 1.3,
        "repeat_last_n": 5,
    }
    drawn = client.generate(model=NAME, prompt="The sea", raw=True, options={**given, "seed": 3, "num_predict": 9})
    assert drawn.response == server.llm.generate("The sea", seed=3, max_tokens=9, **given).text
    stopped = client.generate(model=NAME, prompt="The sea was", raw=True, options={**OPTIONS, "stop": ["e"]})
    assert "e" not in (stopped.response or "") and stopped.done_reason == "stop"


def test_what_loads_a_model_elsewhere_changes_nothing(client: ollama.Client) -> None:
    nothing = {"num_ctx": 8192, "num_gpu": 1, "num_thread": 2, "mirostat": 0, "use_mmap": True}
    more = client.chat(**CHAT | {"options": OPTIONS | nothing}, keep_alive="5m")
    assert more.message.content == client.chat(**CHAT).message.content


@pytest.mark.parametrize("how", [{"mirostat": 2}, {"typical_p": 0.5}, {"no_such": 1}, {"temperature": "hot"}])
def test_an_option_that_can_t_be_kept_to_is_refused_by_name(client: ollama.Client, how: dict[str, Any]) -> None:
    with pytest.raises(ollama.ResponseError, match=f"options.{next(iter(how))}") as caught:
        client.chat(model=NAME, messages=MESSAGES, options=how)
    assert caught.value.status_code == 400 and "\n" not in caught.value.error


def test_a_format_holds(client: ollama.Client) -> None:
    format, options = {"enum": [{"calm": True}]}, {"temperature": 0}
    answer = client.chat(model=NAME, messages=MESSAGES, format=format, options=options).message.content
    text = client.generate(model=NAME, prompt="The sea", raw=True, format=format, options=options).response
    assert json.loads(answer or "") == json.loads(text or "") == {"calm": True}


def test_a_format_of_any_json_begins_an_object(client: ollama.Client) -> None:
    assert (client.chat(**CHAT, format="json").message.content or "").startswith("{")


def test_a_schema_that_can_t_be_kept_to_is_refused_by_the_field_s_name(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"^format: "):
        client.chat(**CHAT, format={"not": {"type": "string"}})


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_as_an_object_and_its_result_goes_back(
    thinking_client: ollama.Client, thinker: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    say(monkeypatch, thinker, f"<think>hm</think>Let me see. {CALL}")
    chat = CHAT | {"tools": [WEATHER], "options": {}}
    if stream:
        messages = [piece.message for piece in thinking_client.chat(**chat, stream=True)]
    else:
        messages = [thinking_client.chat(**chat).message]
    assert "".join(message.thinking or "" for message in messages) == "hm"
    assert "".join(message.content or "" for message in messages).strip() == "Let me see."
    (call,) = [call for message in messages for call in message.tool_calls or []]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Riga"})
    monkeypatch.undo()
    say(monkeypatch, thinker, "Rain.")
    called = next(message for message in messages if message.tool_calls)
    result = {"role": "tool", "tool_name": "weather", "content": "rain"}
    after = thinking_client.chat(**chat | {"messages": [*MESSAGES, called, result]})
    assert after.message.content == "Rain." and not after.message.tool_calls


def test_a_python_function_may_be_a_tool(
    thinking_client: ollama.Client, thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return city

    say(monkeypatch, thinker, CALL)
    answer = thinking_client.chat(model=NAME, messages=MESSAGES, tools=[weather])
    assert [call.function.name for call in answer.message.tool_calls or []] == ["weather"]


def test_think_is_the_template_s_switch(
    thinking_client: ollama.Client, client: ollama.Client, thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinks = thinking_client.chat(**CHAT, think=True).prompt_eval_count or 0
    assert (thinking_client.chat(**CHAT, think=False).prompt_eval_count or 0) > thinks  # an empty thought
    assert client.chat(**CHAT, think=False).message.content == client.chat(**CHAT).message.content
    with pytest.raises(ollama.ResponseError, match=r"^think: "):
        client.chat(**CHAT, think=True)
    say(monkeypatch, thinker, "<think>hm</think>Yes.")
    answer = thinking_client.generate(model=NAME, prompt="Is it?")
    assert (answer.thinking, answer.response) == ("hm", "Yes.")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_other_protocol(client: ollama.Client, server: Running, stream: bool) -> None:
    other = server.post(
        "/v1/chat/completions", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
    ).json()["choices"][0]["logprobs"]["content"]
    body = CHAT | {"logprobs": True, "top_logprobs": 2, "stream": stream}
    lines = [json.loads(line) for line in server.post("/api/chat", **body).text.splitlines()]
    assert [token for line in lines for token in line.get("logprobs", [])] == other


def test_the_model_is_listed_and_shown(client: ollama.Client, server: Running) -> None:
    (listed,) = client.list().models
    assert listed.model == NAME and listed.size and listed.details and listed.modified_at
    assert len(listed.digest or "") == 64
    shown = client.show(NAME)
    assert shown.modelinfo is not None
    family = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{family}.context_length"] == server.llm.config.context
    assert shown.capabilities is not None and {"completion", "tools"} <= set(shown.capabilities)
    assert shown.details == listed.details and "messages" in (shown.template or "")
    (running,) = client.ps().models
    assert (running.model, running.context_length) == (NAME, server.llm.plan.context)
    versions = server.http.get("/api/version").json()
    assert versions["smallthinker"] == smallthinker.__version__
    assert [part.isdecimal() for part in versions["version"].split(".")] == [True] * 3
    assert server.http.head("/").status_code == 200  # how clients ask whether anybody is there


def test_texts_become_vectors(client: ollama.Client, server: Running) -> None:
    texts = ["The sea was calm.", "It was night."]
    expected = server.llm.embed(texts)
    found = client.embed(model=NAME, input=texts)
    assert np.array_equal(np.array(found.embeddings, np.float32), expected)
    assert found.prompt_eval_count == sum(len(server.llm.tokenizer.encode_prompt(text)) for text in texts)
    older = client.embeddings(model=NAME, prompt=texts[0]).embedding
    assert np.array_equal(np.array(older, np.float32), expected[0])
    long = client.embed(model=NAME, input="the sea " * 5000)  # cut to what the context holds
    assert long.prompt_eval_count == server.llm.plan.context - 1
    with pytest.raises(ollama.ResponseError, match="context"):
        client.embed(model=NAME, input="the sea " * 5000, truncate=False)


def test_a_tag_may_follow_the_name_and_another_name_is_not_found(client: ollama.Client) -> None:
    assert client.chat(**CHAT | {"model": f"{NAME}:latest"}).model == f"{NAME}:latest"
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(**CHAT | {"model": "another"})
    assert caught.value.status_code == 404 and "another" in caught.value.error


def test_a_model_is_loaded_by_a_request_for_nothing(client: ollama.Client) -> None:
    assert client.chat(model=NAME).done_reason == "load"
    assert client.generate(model=NAME).done_reason == "load"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images: this model reads only text"),
        ("chat", {"messages": [MESSAGES[0] | {"images": ["aGk="]}]}, "messages.0.images: this model reads only text"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix: "),
        ("generate", {"prompt": "x", "context": [1]}, "context: "),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template: "),
        ("chat", {"messages": [{"role": "nobody", "content": ""}]}, "messages.0.role: "),
        ("pull", {"model": "another"}, "pull: models are added"),
        ("nowhere", {}, "POST /api/nowhere: not found"),
    ],
)
def test_what_is_refused_says_why_in_one_line_of_text(server: Running, path: str, body: Any, said: str) -> None:
    response = server.post(f"/api/{path}", **body)
    error = response.json()["error"]
    assert response.status_code >= 400 and error.startswith(said) and "\n" not in error


def test_an_error_within_a_stream_is_a_line_of_it(
    client: ollama.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "timeout", lambda asked: 1e-9)
    with pytest.raises(ollama.ResponseError, match="not finished"):
        list(client.chat(**CHAT, stream=True))
