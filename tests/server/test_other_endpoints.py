"""Everything but chat: through the official client where it knows the endpoint."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from running import NAME, Running, say

from smallthinker.server import answers

TEXT: dict[str, Any] = {"model": NAME, "prompt": "The sea was", "temperature": 0, "max_tokens": 10}
INPUT: dict[str, Any] = {"model": NAME, "input": "Who is it?", "temperature": 0, "max_output_tokens": 10}


def test_a_text_is_continued_as_it_is(client: OpenAI, server: Running) -> None:
    alone = server.llm.generate("The sea was", temperature=0, max_tokens=10)
    answer = client.completions.create(**TEXT)
    assert answer.choices[0].text == alone.text and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 10
    ids = server.llm.tokenize("The sea was")
    assert client.completions.create(**TEXT | {"prompt": ids}).choices[0].text == alone.text


def test_without_a_limit_a_continuation_has_the_protocol_s_sixteen_tokens(server: Running) -> None:
    answer = server.post("/v1/completions", prompt="The sea was", logit_bias={"0": -100}).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_several_prompts_have_several_answers_each(client: OpenAI, server: Running) -> None:
    prompts = ["The sea was", "Once upon"]
    options = TEXT | {"temperature": 1.0, "seed": 7}
    answer = client.completions.create(**options | {"prompt": prompts}, n=2)
    alone = [
        client.completions.create(**options | {"prompt": prompt, "seed": 7 + i}).choices[0].text
        for prompt in prompts
        for i in range(2)
    ]
    assert [choice.text for choice in answer.choices] == alone
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(server.llm.tokenize(prompt)) for prompt in prompts)
    as_ids = [server.llm.tokenize(prompt) for prompt in prompts]
    assert [c.text for c in client.completions.create(**options | {"prompt": as_ids}, n=2).choices] == alone


def test_a_continuation_streams_with_its_usage_at_the_end(client: OpenAI) -> None:
    whole = client.completions.create(**TEXT)
    chunks = list(client.completions.create(**TEXT, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 10


@pytest.mark.parametrize("form", ["chat", "text"])
def test_a_stream_tells_how_far_the_prompt_has_been_read_if_asked(
    form: str, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_TOLD_SEC", 0.0)
    words = f"Who is it, and where is number {time.monotonic_ns()}? " * 20  # nothing of it has been computed before

    def asked(**more: Any) -> list[Any]:
        options: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 3, "stream": True, **more}
        if form == "text":
            return list(client.completions.create(prompt=words, **options))
        return list(client.chat.completions.create(messages=[{"role": "user", "content": words}], **options))

    chunks = asked(extra_body={"return_progress": True}, stream_options={"include_usage": True})
    told = [chunk.prompt_progress for chunk in chunks if hasattr(chunk, "prompt_progress")]
    total = chunks[-1].usage.prompt_tokens
    assert [one["processed"] for one in told] == sorted({one["processed"] for one in told})
    assert len(told) > 1 and told[-1] == {"index": 0, "processed": total, "total": total}
    assert not any(hasattr(chunk, "prompt_progress") for chunk in asked())
    with pytest.raises(BadRequestError, match="return_progress"):
        asked(stream=False, extra_body={"return_progress": True})


def test_echo_begins_with_the_prompt(client: OpenAI, server: Running) -> None:
    plain = client.completions.create(**TEXT).choices[0].text
    assert client.completions.create(**TEXT, echo=True).choices[0].text == "The sea was" + plain
    streamed = client.completions.create(**TEXT, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "The sea was" + plain
    ids = server.llm.tokenize("The sea was")
    assert client.completions.create(**TEXT | {"prompt": ids}, echo=True).choices[0].text == "The sea was" + plain


def test_logprobs_come_as_four_lists(client: OpenAI) -> None:
    choice = client.completions.create(**TEXT, logprobs=2).choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    assert "".join(found.tokens) == choice.text
    assert found.top_logprobs is not None and found.text_offset is not None
    for token, logprob, top, offset in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True
    ):
        assert max(top.values()) == logprob == top[token]
        assert choice.text[offset:].startswith(token)
    chunks = client.completions.create(**TEXT, logprobs=2, stream=True)
    streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [t for logprobs in streamed for t in logprobs.tokens or []] == found.tokens
    assert [o for logprobs in streamed for o in logprobs.text_offset or []] == found.text_offset


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ["a"] * 16, "n": 2}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
    ],
)
def test_continuations_that_make_no_sense_are_refused(client: OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as error:
        client.completions.create(**TEXT | options)
    assert (error.value.param or "").startswith(param)


def test_a_response_is_the_chat_s_answer(client: OpenAI, server: Running) -> None:
    messages: Any = [{"role": "system", "content": "A story."}, {"role": "user", "content": "Who is it?"}]
    alone = server.llm.generate(messages, temperature=0, max_tokens=10).text
    as_text = client.responses.create(**INPUT, instructions="A story.")
    assert as_text.output_text == alone
    assert as_text.status == "incomplete" and as_text.incomplete_details is not None
    assert as_text.incomplete_details.reason == "max_output_tokens"
    assert as_text.usage is not None and as_text.usage.output_tokens == 10
    as_messages = client.responses.create(**INPUT | {"input": messages})
    assert as_messages.output_text == alone
    # what a response gave can be part of the next input
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    turn = [*messages, thought, as_messages.output[0].model_dump(), {"role": "user", "content": "And?"}]
    assert client.responses.create(**INPUT | {"input": turn}).output_text


def test_a_response_streams_as_the_client_s_own_events(client: OpenAI) -> None:
    whole = client.responses.create(**INPUT)
    events = list(client.responses.create(**INPUT, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.incomplete"
    assert text == whole.output_text == last.response.output_text


def test_the_client_s_own_stream_helper_understands_it(
    client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, server, "It is I.")
    with client.responses.stream(**INPUT) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == "It is I."


def test_a_response_has_its_thought_as_an_item_of_its_own(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, thinker, "<think>Hm.</think>Yes.")
    answer = thinker.openai.responses.create(model=NAME, input="Hello")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    thought = answer.output[0]
    assert thought.type == "reasoning" and thought.content is not None and thought.content[0].text == "Hm."
    assert answer.output_text == "Yes." and answer.status == "completed"
    events = [event.type for event in thinker.openai.responses.create(model=NAME, input="Hello", stream=True)]
    assert "response.reasoning_text.delta" in events and events[-1] == "response.completed"


def test_a_response_keeps_to_a_schema(client: OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                   "additionalProperties": False}  # fmt: skip
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    answer = client.responses.create(model=NAME, input="Is it?", text=form)
    assert set(json.loads(answer.output_text)) == {"ok"}


@pytest.mark.parametrize("options", [{"tools": [{"type": "web_search"}]}, {"previous_response_id": "resp_1"},
                                     {"background": True}, {"store": True}, {"input": []}])  # fmt: skip
def test_what_a_response_cannot_be_asked_for_is_refused(client: OpenAI, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        client.responses.create(**INPUT | options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"store": True}, "store: expected false: nothing is stored, so a conversation is sent whole"),
        ({"truncation": "auto"}, 'truncation: expected "disabled": an input that is too long is refused, not cut'),
        ({"background": True}, "background: expected false: an answer is sent in reply to its request"),
        ({"extra_body": {"store": 0}}, "store: expected false: nothing is stored, so a conversation is sent whole"),
    ],
)
def test_what_only_one_value_is_taken_of_says_which_and_why(client: OpenAI, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError) as error:
        client.responses.create(**INPUT | options)
    assert error.value.body is not None and error.value.body["message"] == said  # type: ignore[index]
    assert error.value.param == said.partition(":")[0]


def test_a_failure_within_a_stream_is_told_in_it(
    client: OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret of the inside")

    submit = server.llm.scheduler.submit
    monkeypatch.setattr(server.llm.scheduler, "submit", lambda *a, **k: submit(*a, **k | {"logits_processor": broken}))
    with pytest.raises(APIError, match="internal error"):
        list(client.completions.create(**TEXT, stream=True))
    events = list(client.responses.create(**INPUT, stream=True))
    last = events[-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert "secret" not in last.response.error.message


def test_the_one_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "smallthinker"
    assert "15-million-parameter" in str(client.models.retrieve(NAME).to_dict()["description"])
    with pytest.raises(NotFoundError):
        client.models.retrieve("another/one")


def test_texts_and_messages_are_counted_in_tokens(server: Running) -> None:
    found = server.post("/v1/tokenize", prompt="The sea was").json()
    ids = server.llm.tokenize("The sea was")
    assert found == {"tokens": ids, "count": len(ids), "max_model_len": server.llm.plan.context}
    messages = [{"role": "user", "content": "hi"}]
    chat = server.post("/v1/tokenize", messages=messages).json()
    assert chat["tokens"] == server.llm.tokenize(server.llm.tokenizer.render_chat(messages))
    assert server.post("/v1/tokenize").status_code == 400
    assert server.post("/v1/tokenize", prompt="x", messages=messages).status_code == 400


def test_health_says_whether_the_model_still_answers(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    monkeypatch.setattr(server.llm.scheduler, "_closed", True)
    assert httpx.get(f"{server.url}/health").status_code == 503


def metrics(server: Running) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(smallthinker_[^ ]+) ([^ ]+)$", text, re.MULTILINE)}


def test_metrics_count_what_was_done(client: OpenAI, server: Running) -> None:
    before = metrics(server)
    client.completions.create(**TEXT, extra_body={"top_k": 1})
    after = metrics(server)

    def more(name: str) -> float:
        return after[f"smallthinker_{name}"] - before.get(f"smallthinker_{name}", 0)

    assert more("generated_tokens_total") == 10
    assert more("prompt_tokens_total") == len(server.llm.tokenize("The sea was"))
    assert more("time_to_first_token_seconds_count") == more("time_per_output_token_seconds_count") == 1
    assert more('requests_total{finish_reason="length"}') == 1
    assert after["smallthinker_memory_bytes"] > 0 and 0 <= after["smallthinker_expert_hit_rate"] <= 1
    assert {"smallthinker_requests_waiting", "smallthinker_expert_bytes_read_total"} <= set(after)


def test_the_live_panel_s_figures_show_which_experts_fire(client: OpenAI, server: Running) -> None:
    def uses() -> list[list[int]]:
        found: list[list[int]] = httpx.get(f"{server.url}/api/stats").json()["expert_uses"]
        return found

    before = uses()
    client.completions.create(**TEXT | {"prompt": "Nobody has asked this before", "max_tokens": 5})
    config = server.llm.config
    fired = [sum(b) - sum(a) for a, b in zip(before, uses(), strict=True)]
    assert len(fired) == config.num_layers and len(before[0]) == config.experts_per_layer
    prompt = len(server.llm.tokenize("Nobody has asked this before"))
    assert fired[0] == (prompt + 4) * config.experts_per_token  # the last token is never computed
    assert len(set(fired)) == 1
