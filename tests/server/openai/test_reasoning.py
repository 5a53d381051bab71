"""Thoughts apart from the answer, and switched per request where the template knows how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running import NAME, Running, say

BASE: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 0,
    "max_tokens": 60,
}


def test_a_thought_is_apart_from_the_answer(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, thinker, "<think>\nA greeting.\n</think>\n\nGood day.")
    answer = thinker.openai.chat.completions.create(**BASE)
    message = answer.choices[0].message
    assert message.content == "Good day."
    assert message.model_extra is not None and message.model_extra["reasoning_content"] == "A greeting."
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens


def test_a_thought_streams_apart_from_the_answer(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, thinker, "<think>\nA greeting.\n</think>\n\nGood day.")
    thought = said = ""
    for chunk in thinker.openai.chat.completions.create(**BASE, stream=True):
        delta = chunk.choices[0].delta
        thought += (delta.model_extra or {}).get("reasoning_content", "")
        said += delta.content or ""
    assert (thought, said) == ("A greeting.", "Good day.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_counts_in_the_answer_and_not_in_the_thought(
    thinker: Running, opened_thinker: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    for running, begin in ((thinker, "<think>"), (opened_thinker, "")):
        say(monkeypatch, running, f"{begin}\nA day.\n\nOr two.\n</think>\n\nGood day.\n\nAnd more.")
        answer = running.openai.chat.completions.create(**BASE, stop=["\n\nAnd", "Or", "."], stream=stream)
        whole = (
            [chunk.choices[0].delta for chunk in answer] if stream else [answer.choices[0].message]  # type: ignore
        )
        thought = "".join((part.model_extra or {}).get("reasoning_content", "") for part in whole)
        assert thought == "A day.\n\nOr two."
        assert "".join(part.content or "" for part in whole) == "Good day"


def test_a_prompt_that_opens_the_thought_itself_is_understood(
    opened_thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, opened_thinker, "A greeting.\n</think>\n\nGood day.")
    message = opened_thinker.post("/v1/chat/completions", **BASE).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("A greeting.", "Good day.")


def test_the_switch_reaches_the_template_under_both_names(thinker: Running) -> None:
    def prompt_tokens(**extra: Any) -> int:
        usage = thinker.openai.chat.completions.create(**BASE, extra_body=extra).usage
        assert usage is not None
        return usage.prompt_tokens

    off = len(thinker.llm.tokenize("<think>\n\n</think>\n"))
    usual = prompt_tokens()
    assert prompt_tokens(enable_thinking=True) == usual
    assert prompt_tokens(enable_thinking=False) > usual + off - 3
    assert prompt_tokens(chat_template_kwargs={"enable_thinking": False}) == prompt_tokens(enable_thinking=False)


def test_a_model_that_knows_no_thoughts_keeps_the_text_as_it_is(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, server, "<think>x</think>y")
    message = server.post("/v1/chat/completions", **BASE).json()["choices"][0]["message"]
    assert message["content"] == "<think>x</think>y" and "reasoning_content" not in message


def test_a_schema_holds_for_the_answer_and_not_for_the_thought(
    thinker: Running, opened_thinker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for running, opening in ((thinker, "<think>"), (opened_thinker, "")):
        with monkeypatch.context() as patch:
            say(patch, running, f'{opening}Free words.</think>\n\n{{"ok": true}}')
            message = running.post("/v1/chat/completions", **BASE, response_format=form).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "Free words."
        assert json.loads(message["content"]) == {"ok": True}
    # and without a thought, the answer itself begins at once
    message = thinker.post("/v1/chat/completions", **BASE, response_format=form, enable_thinking=False).json()
    assert set(json.loads(message["choices"][0]["message"]["content"])) == {"ok"}


def test_the_figures_tell_whether_a_model_thinks(thinker: Running, server: Running) -> None:
    import httpx

    for running, expected in ((thinker, (True, True)), (server, (False, False))):
        stats = httpx.get(f"{running.url}/api/stats").json()
        assert (stats["thinks"], stats["can_switch_thinking"]) == expected
