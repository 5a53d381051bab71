"""/v1/responses with functions, and the fields that change nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from running import NAME, Running, say

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Riga"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "name": "weather", "parameters": SCHEMA | {"additionalProperties": False}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Riga"}}</tool_call>'
ASKED: dict[str, Any] = {"model": NAME, "input": "What is the weather in Riga?", "tools": [TOOL]}


@pytest.fixture(scope="module")
def client(thinker: Running) -> OpenAI:
    return thinker.openai


def test_a_call_is_an_item_and_its_result_goes_back(
    client: OpenAI, thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, thinker, f"<think>hm</think>Let me see.{CALL}{CALL}")
    answer = client.responses.create(**ASKED)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    call: Any = answer.output[2]
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Riga"}, "completed")
    assert answer.status == "completed" and answer.parallel_tool_calls and answer.output_text.strip() == "Let me see."
    assert [tool.type for tool in answer.tools] == ["function"] and answer.tool_choice == "auto"
    monkeypatch.undo()
    say(monkeypatch, thinker, "Rain.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    turns = [{"role": "user", "content": ASKED["input"]}, *(item.model_dump() for item in answer.output[:3]), result]
    assert client.responses.create(**ASKED | {"input": turns}).output_text == "Rain."


def test_a_call_streams_as_the_protocol_s_events(
    client: OpenAI, thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, thinker, f"Let me see.{CALL}")
    events = list(client.responses.create(**ASKED, stream=True))
    names = [event.type.removeprefix("response.") for event in events]
    assert names[-5:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    added: Any = events[-5]
    last: Any = events[-1]
    assert added.item.arguments == "" and added.item.name == "weather" and added.output_index == 1
    assert last.response.output[1].arguments == '{"city": "Riga"}'
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(**ASKED) as stream:
        assert stream.get_final_response().output[1].type == "function_call"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_function_that_must_be_called_is(client: OpenAI, choice: Any) -> None:
    answer = client.responses.create(**ASKED, tool_choice=choice, temperature=0, parallel_tool_calls=False)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Riga"} and not answer.parallel_tool_calls


def test_one_call_at_a_time_ends_the_answer_after_the_first(
    client: OpenAI, thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, thinker, f"{CALL}{CALL}")
    answer = client.responses.create(**ASKED, parallel_tool_calls=False)
    assert [item.type for item in answer.output] == ["function_call"] and answer.status == "completed"


def test_fields_that_change_nothing_are_taken_by_both_protocols(client: OpenAI, thinker: Running) -> None:
    same: dict[str, Any] = {"model": NAME, "temperature": 0}
    nothing: dict[str, Any] = {"service_tier": "flex", "safety_identifier": "x", "prompt_cache_retention": "24h"}
    text = client.responses.create(**same, input="Hello", max_output_tokens=5).output_text
    more = {"text": {"verbosity": "low"}, "include": ["reasoning.encrypted_content"], "truncation": "disabled"}
    assert client.responses.create(**same, input="Hello", max_output_tokens=5, **nothing, **more).output_text == text
    chat = same | {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    said = client.chat.completions.create(**chat).choices[0].message.content
    more = {"verbosity": "high", "prediction": {"type": "content", "content": "Hello"}}
    assert client.chat.completions.create(**chat, **nothing, **more).choices[0].message.content == said


@pytest.mark.parametrize("part", ["input_image", "image_url", "input_file", "input_audio"])
def test_a_part_that_isn_t_text_is_one_plain_line(client: OpenAI, part: str) -> None:
    content = [{"type": part, part: {"url": "data:image/png;base64,aGk="}}]
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model=NAME, input=[{"role": "user", "content": content}])  # type: ignore[list-item]
    with pytest.raises(BadRequestError) as also:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": content}])  # type: ignore[list-item, misc]
    for error in (caught.value, also.value):
        message = error.body["message"]  # type: ignore[index]
        assert "this model reads only text" in message and "\n" not in message
