"""Tools in and calls out, and answers that keep to a schema; a tiny model keeps to it, too, since it must."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel
from running import NAME, Running, say

ASK: list[Any] = [{"role": "user", "content": "What is the weather in Riga?"}]
BASE: dict[str, Any] = {"model": NAME, "messages": ASK, "temperature": 0, "max_tokens": 120}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Riga", "Tallinn"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tall": {"type": "boolean"},
        "ages": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "tall", "ages"],
    "additionalProperties": False,
}


def call_text(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_call_comes_out_as_a_call(client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, server, "I look.\n" + call_text("weather", {"city": "Riga", "days": 2}))
    choice = client.chat.completions.create(**BASE, tools=[WEATHER, CLOCK]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "weather" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"city": "Riga", "days": 2}


def test_several_calls_stream_each_as_a_whole(client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, server, call_text("weather", {"city": "Riga", "days": 2}) + "\n" + call_text("clock", {}))
    names, arguments, ids, reason = {}, {0: "", 1: ""}, {}, None
    for chunk in client.chat.completions.create(**BASE, tools=[WEATHER, CLOCK], stream=True):
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id:
                ids[call.index] = call.id
                names[call.index] = call.function.name if call.function else None
            arguments[call.index] += (call.function.arguments if call.function else None) or ""
    assert names == {0: "weather", 1: "clock"} and len(set(ids.values())) == 2
    assert json.loads(arguments[0]) == {"city": "Riga", "days": 2} and json.loads(arguments[1]) == {}
    assert reason == "tool_calls"


def test_a_long_call_keeps_its_connection_alive(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallthinker.server.openai.chat_completions.PING_SEC", -1.0)
    say(monkeypatch, server, call_text("weather", {"city": "Riga", "days": 2}))
    text = server.post("/v1/chat/completions", **BASE, tools=[WEATHER], stream=True).text
    assert text.index(": still at work") < text.index('"weather"')


def test_only_one_call_is_made_where_one_is_wanted(
    client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, server, "\n".join(call_text("clock", {}) for _ in range(3)))
    for stream in (False, True):
        options = BASE | {"tools": [CLOCK], "parallel_tool_calls": False}
        if stream:
            chunks = list(client.chat.completions.create(**options, stream=True))
            calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or [] if c.id]
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
        else:
            choice = client.chat.completions.create(**options).choices[0]
            calls, reason = choice.message.tool_calls or [], choice.finish_reason
            assert reason == "tool_calls"
        assert len(calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_must_be_called_and_its_arguments_fit(client: OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    options = BASE | {"tools": [WEATHER, CLOCK], "tool_choice": choice}
    if stream:
        chunks = client.chat.completions.create(**options, stream=True)
        calls = [c.function for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        name, text = calls[0].name, "".join(call.arguments or "" for call in calls)
    else:
        message = client.chat.completions.create(**options).choices[0].message
        assert message.content is None and message.tool_calls
        name, text = message.tool_calls[0].function.name, message.tool_calls[0].function.arguments
    arguments = json.loads(text)
    assert name == "weather" and arguments["city"] in ("Riga", "Tallinn") and arguments["days"] in (1, 2, 3)


def test_required_lets_the_model_choose_which(client: OpenAI) -> None:
    message = client.chat.completions.create(**BASE, tools=[WEATHER, CLOCK], tool_choice="required").choices[0].message
    assert message.tool_calls and message.tool_calls[0].function.name in ("weather", "clock")


def test_with_none_the_model_is_told_of_no_tool(client: OpenAI, server: Running) -> None:
    plain = client.chat.completions.create(**BASE)
    without = client.chat.completions.create(**BASE, tools=[WEATHER], tool_choice="none")
    assert without.choices[0].message.content == plain.choices[0].message.content
    assert plain.usage is not None and without.usage is not None
    assert plain.usage.prompt_tokens == without.usage.prompt_tokens


def test_tools_calls_and_results_reach_a_template_that_knows_them(
    thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Riga"}'}}
    messages: list[Any] = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    rendered: list[str] = []
    render = thinker.llm.tokenizer.render_chat

    def seen(*args: Any, **kwargs: Any) -> str:
        rendered.append(render(*args, **kwargs))
        return rendered[-1]

    monkeypatch.setattr(thinker.llm.tokenizer, "render_chat", seen)
    thinker.openai.chat.completions.create(**BASE | {"messages": messages, "max_tokens": 2}, tools=[WEATHER])
    assert rendered[0].startswith(f"TOOLS {json.dumps([WEATHER])}")
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Riga"}}</tool_call>' in rendered[0]
    assert "tool: Rain." in rendered[0]


def test_a_template_without_tools_is_given_them_as_text(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Noon."},
    ]
    rendered: list[str] = []
    render = server.llm.tokenizer.render_chat
    monkeypatch.setattr(
        server.llm.tokenizer, "render_chat", lambda *a, **k: rendered.append(render(*a, **k)) or rendered[-1]
    )
    server.openai.chat.completions.create(**BASE | {"messages": messages, "max_tokens": 2}, tools=[CLOCK])
    for text in ("Be brief.\n\n# Tools", json.dumps(CLOCK), 'I look.\n<tool_call>\n{"name": "clock"',
                 "<tool_response>\nNoon.\n</tool_response>"):  # fmt: skip
        assert text in rendered[0]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_keeps_to_a_schema(client: OpenAI, temperature: float) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            **BASE | {"temperature": temperature}, seed=seed, response_format=form
        ).choices[0]
        found = json.loads(answer.message.content or "")
        assert answer.finish_reason == "stop"
        assert list(found) == ["name", "tall", "ages"] and len(found["name"]) <= 12
        assert isinstance(found["tall"], bool) and set(found["ages"]) <= {1, 2, 3} and len(found["ages"]) == 2


def test_the_client_s_own_parsing_of_a_pydantic_model_works(client: OpenAI) -> None:
    class Light(BaseModel):
        on: bool
        reds: list[bool]

    parsed = client.chat.completions.parse(
        **BASE, response_format=Light, logit_bias={str(token): 30 for token in closing(client)}
    )
    assert isinstance(parsed.choices[0].message.parsed, Light)


def closing(client: OpenAI) -> list[int]:
    """Tokens that end something: a model that knows no JSON would go on for ever."""
    ids: list[int] = []
    for text in ('"', "}", "]", '"}'):
        ids += client.post("/tokenize", body={"prompt": text}, cast_to=object)["tokens"]  # type: ignore[index]
    return ids


def test_json_object_is_an_object_of_any_kind(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **BASE, response_format={"type": "json_object"}, logit_bias={str(token): 30 for token in closing(client)}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_text_is_what_it_is_without(client: OpenAI) -> None:
    plain = client.chat.completions.create(**BASE).choices[0].message.content
    assert client.chat.completions.create(**BASE, response_format={"type": "text"}).choices[0].message.content == plain


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "what"},
        {"$ref": "http://example.org/schema"},
        {"$ref": "#"},
        {"type": "string", "pattern": "("},
        {"not": {"type": "string"}},
        {"type": "object", "properties": 5},
        {"enum": ["x" * 70_000]},
        {"enum": list(range(5000))},
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(client: OpenAI, schema: dict[str, Any]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(**BASE | {"max_tokens": 20}, response_format=form)
    assert error.value.param == "response_format"


def test_a_schema_nested_too_deep_is_refused(client: OpenAI) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"x": schema}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(BadRequestError, match="nested deeper"):
        client.chat.completions.create(**BASE, response_format=form)


def test_a_grammar_that_grows_too_complex_ends_its_own_answer_and_no_other(client: OpenAI) -> None:
    hard: Any = {"type": "string", "pattern": "(.*a.{1,200}b.*c.{1,200}d)+"}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": hard}}
    with pytest.raises(BadRequestError):
        client.chat.completions.create(**BASE | {"max_tokens": 400}, response_format=form)
    assert client.chat.completions.create(**BASE).choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [CLOCK, CLOCK]},
        {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(65)]},
        {"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "what"}}}],
         "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["x" * 70_000]}}}]},
    ],
)  # fmt: skip
def test_tools_that_make_no_sense_are_refused(client: OpenAI, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        client.chat.completions.create(**BASE, **options)
