"""Other families' thoughts, calls and ends of turn, through a tokenizer that has their special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_families import CALL_ARGUMENTS, FAMILIES, WEATHER
from running import MEMORY, NAME, Running, demo_with_template, say, serving

from smallthinker import LLM
from smallthinker.text.chat_formats import HERMES_CALL, chat_format

BASE: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 0,
    "max_tokens": 600,
}
NAMES = ["gpt_oss", "gemma4", "ministral", "mistral", "glm4_moe", "phi4_mini"]


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Running]]:
    name = request.param
    store = demo_with_template(
        tmp_path_factory.mktemp(name) / "store", FAMILIES[name].template, FAMILIES[name].specials
    )
    with LLM(store, memory=MEMORY, threads=1) as llm, serving(llm) as running:
        yield name, running


def deltas(running: Running, **more: Any) -> tuple[str, str, list[tuple[str, Any]], str]:
    """Thought, what is said, calls, why it ended: put together from a stream."""
    thought = said = reason = ""
    calls: dict[int, list[str]] = {}
    for chunk in running.openai.chat.completions.create(**BASE | more, stream=True):
        choice = chunk.choices[0]
        thought += (choice.delta.model_extra or {}).get("reasoning_content", "")
        said += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            name, arguments = calls.setdefault(call.index, ["", ""])
            calls[call.index] = [name + (call.function.name or ""), arguments + (call.function.arguments or "")]
    return thought, said, [(name, json.loads(arguments)) for name, arguments in calls.values()], reason


def test_a_thought_is_apart_and_the_family_s_token_ends_the_answer(
    family: tuple[str, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, running = family
    thinking = FAMILIES[name].thinking
    say(monkeypatch, running, (thinking or "Good day.") + FAMILIES[name].end + "More.", special_tokens=True)
    message = running.post("/v1/chat/completions", **BASE).json()["choices"][0]["message"]
    assert message["content"] == "Good day."
    assert message.get("reasoning_content", "") == ("Hm.\nWell." if thinking else "")
    assert deltas(running) == (message.get("reasoning_content", ""), "Good day.", [], "stop")


def test_calls_come_out_and_can_be_sent_back(family: tuple[str, Running], monkeypatch: pytest.MonkeyPatch) -> None:
    name, running = family
    rendered: list[str] = []
    render = running.llm.tokenizer.render_chat
    with monkeypatch.context() as patched:
        say(patched, running, FAMILIES[name].calling, special_tokens=True)
        choice = running.post("/v1/chat/completions", **BASE, tools=[WEATHER]).json()["choices"][0]
        number = 1 if name == "gpt_oss" else 2  # its turn ends with a call
        assert deltas(running, tools=[WEATHER]) == ("", "", [("weather", CALL_ARGUMENTS)] * number, "tool_calls")
    calls = choice["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [CALL_ARGUMENTS] * number
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "Rain."} for call in calls]
    monkeypatch.setattr(
        running.llm.tokenizer, "render_chat", lambda *a, **k: rendered.append(render(*a, **k)) or rendered[-1]
    )
    messages = [*BASE["messages"], choice["message"], *results]
    asked = running.post("/v1/chat/completions", **BASE | {"messages": messages, "max_tokens": 2}, tools=[WEATHER])
    assert asked.status_code == 200, asked.text
    assert rendered[0].count("weather") >= 1 + number
    foreign = [{**choice["message"], "tool_calls": [calls[0] | {"id": "call_0123456789abcdef"}]}]
    messages = [*BASE["messages"], *foreign, results[0] | {"tool_call_id": "call_0123456789abcdef"}]
    asked = running.post("/v1/chat/completions", **BASE | {"messages": messages, "max_tokens": 2}, tools=[WEATHER])
    assert asked.status_code == 200, asked.text


def test_a_call_can_be_asked_for(family: tuple[str, Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the family's own form, where a grammar can hold a model to it, and else in the usual one."""
    name, running = family
    [block] = chat_format(FAMILIES[name].template).of("call")
    block = block if block.written else HERMES_CALL
    call_text = block.written % "weather" + '{"city": "Riga"}' + block.closed
    say(monkeypatch, running, call_text, special_tokens=True)
    schema = {"type": "object", "properties": {"city": {"enum": ["Riga", "Tallinn"]}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    choice = running.post("/v1/chat/completions", **BASE, tools=[tool], tool_choice="required").json()["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Riga"}
    assert choice["finish_reason"] == "tool_calls"


def test_a_schema_holds_behind_a_thought(family: tuple[str, Running], monkeypatch: pytest.MonkeyPatch) -> None:
    name, running = family
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = (FAMILIES[name].thinking or "Good day.").replace("Good day.", '{"ok": true}')
    say(monkeypatch, running, said.lstrip(), special_tokens=True)
    switch = {"enable_thinking": True} if name == "gemma4" else {}
    body = BASE | switch | {"response_format": form}
    message = running.post("/v1/chat/completions", **body).json()["choices"][0]["message"]
    assert json.loads(message["content"]) == {"ok": True}
    assert message.get("reasoning_content", "") == ("Hm.\nWell." if FAMILIES[name].thinking else "")
