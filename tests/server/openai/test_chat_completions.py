"""Every option of chat/completions, through the official client, against a running server."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from running import NAME, Running

MESSAGES: list[Any] = [{"role": "system", "content": "A story."}, {"role": "user", "content": "Who is it?"}]
GREEDY: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}


def test_an_answer_is_what_the_library_gives_for_the_same_messages(client: OpenAI, server: Running) -> None:
    alone = server.llm.generate(MESSAGES, temperature=0, max_tokens=12)
    answer = client.chat.completions.create(**GREEDY)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == NAME and answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_s_pieces_are_the_same_answer_and_its_last_chunk_has_the_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_has_no_usage_unless_asked_for(client: OpenAI) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in client.chat.completions.create(**GREEDY, stream=True))


def test_the_next_turn_of_a_conversation_computes_only_what_is_new(client: OpenAI) -> None:
    opening: Any = [{"role": "user", "content": "This is a long opening of a conversation, told at some length."}]
    first = client.chat.completions.create(model=NAME, messages=opening, temperature=0, max_tokens=8)
    said: Any = {"role": "assistant", "content": first.choices[0].message.content}
    turn = [*opening, said, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=NAME, messages=turn, temperature=0, max_tokens=8)
    assert first.usage is not None and second.usage is not None and second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_a_stop_text_ends_the_answer_and_is_left_out(client: OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content or ""
    stop = whole[10:13]
    for form in (stop, [stop, "never said"]):
        cut = client.chat.completions.create(**GREEDY, stop=form).choices[0]
        assert (cut.message.content, cut.finish_reason) == (whole[: whole.find(stop)], "stop")


def test_the_same_seed_gives_the_same_text_and_another_one_another(client: OpenAI) -> None:
    def text(seed: int) -> str | None:
        options = GREEDY | {"temperature": 1.5, "max_tokens": 24}
        return client.chat.completions.create(**options, seed=seed).choices[0].message.content

    assert text(3) == text(3) != text(4)
    assert text(-1) == text(-1)  # the protocol's seeds are signed


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_is_kept_under_both_names(client: OpenAI, field: str) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, extra_body={field: 3})
    assert answer.usage is not None and answer.usage.completion_tokens == 3


def test_an_answer_goes_on_to_the_end_of_the_context_when_nothing_else_ends_it(server: Running) -> None:
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 10**6, "logit_bias": {"0": -100}}
    answer = server.post("/v1/chat/completions", **body).json()
    assert answer["usage"]["total_tokens"] == server.llm.plan.context
    assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs_are_those_of_the_model_and_the_best_come_first(client: OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3).choices[0]
    assert answer.logprobs is not None and answer.logprobs.content is not None
    assert len(answer.logprobs.content) == 12
    assert b"".join(bytes(t.bytes or []) for t in answer.logprobs.content).decode() == answer.message.content
    for token in answer.logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        probs = [math.exp(top.logprob) for top in token.top_logprobs]
        assert len(probs) == 3 and probs == sorted(probs, reverse=True) and sum(probs) <= 1.0001


def test_a_stream_has_the_logprobs_of_every_token_once(client: OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY, logprobs=True).choices[0].logprobs
    chunks = client.chat.completions.create(**GREEDY, logprobs=True, stream=True)
    streamed = [token for c in chunks if c.choices[0].logprobs for token in c.choices[0].logprobs.content or []]
    assert whole is not None and streamed == whole.content
    assert all(token.top_logprobs == [] for token in streamed)


def test_several_choices_come_with_seeds_of_their_own(client: OpenAI, server: Running) -> None:
    options = GREEDY | {"temperature": 1.0, "seed": 5}
    answer = client.chat.completions.create(**options, n=3)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts == [
        client.chat.completions.create(**options | {"seed": 5 + i}).choices[0].message.content for i in range(3)
    ]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert answer.usage is not None and answer.usage.completion_tokens == 36


def test_a_bias_bans_a_token_or_makes_it_the_only_one(client: OpenAI, server: Running) -> None:
    usual = server.llm.generate(MESSAGES, temperature=0, max_tokens=12).token_ids
    banned = client.chat.completions.create(**GREEDY, logit_bias={str(usual[0]): -100}, logprobs=True).choices[0]
    assert banned.message.content != server.llm.detokenize(usual)
    only = server.llm.tokenize(" the")[0]
    forced = client.chat.completions.create(**GREEDY, logit_bias={str(only): 100}).choices[0]
    assert forced.message.content == server.llm.detokenize([only] * 12)


def test_penalties_keep_tokens_from_coming_again(client: OpenAI, server: Running) -> None:
    def different(**penalty: Any) -> int:
        answer = client.chat.completions.create(**GREEDY | {"max_tokens": 60}, logprobs=True, **penalty)
        assert answer.choices[0].logprobs is not None
        return len({token.token for token in answer.choices[0].logprobs.content or []})

    assert different(frequency_penalty=2.0) > different() < different(presence_penalty=2.0)
    assert different(extra_body={"repeat_penalty": 1.5}) > different()


def test_each_sampler_is_handed_on(client: OpenAI, server: Running) -> None:
    greedy = client.chat.completions.create(**GREEDY).choices[0].message.content
    hot = GREEDY | {"temperature": 5.0, "seed": 1}
    wild = {"top_k": 0, "min_p": 0.0}

    def said(top_p: float, **samplers: float) -> str | None:
        answer = client.chat.completions.create(**hot, top_p=top_p, extra_body=wild | samplers)
        return answer.choices[0].message.content

    assert said(1) != greedy
    assert said(1, top_k=1) == said(1, min_p=0.999) == said(1e-9) == greedy


def test_content_in_parts_is_the_same_as_their_text(client: OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]}]
    whole: Any = [{"role": "user", "content": "Who is it?"}]
    texts = {
        client.chat.completions.create(**GREEDY | {"messages": form}).choices[0].message.content
        for form in (parts, whole)
    }
    assert len(texts) == 1


def test_another_model_s_name_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="demo") as error:
        client.chat.completions.create(**GREEDY | {"model": "another"})
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"extra_body": {"best_of": 3}}, "best_of"),
        ({"extra_body": {"functions": []}}, "functions"),
        ({"reasoning_effort": "a lot"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 3}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"top_p": 0}, "top_p"),
        ({"extra_body": {"top_k": -1}}, "top_k"),
        ({"extra_body": {"min_p": 1}}, "min_p"),
        ({"extra_body": {"repeat_penalty": 0}}, "repeat_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"seed": 2**64}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"timeout": 10**6}}, "timeout"),
        ({"extra_body": {"enable_thinking": True}}, "enable_thinking"),
        ({"extra_body": {"chat_template_kwargs": {"documents": 1}}}, "documents"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(**GREEDY, **options)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": "x", "tool_calls": [{"id": "1", "type": "function",
          "function": {"name": "f", "arguments": "{}"}}]}], "messages.0.tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
         "messages.0.content.0.type"),
    ],
)  # fmt: skip
def test_messages_that_make_no_sense_are_refused(client: OpenAI, messages: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(**GREEDY | {"messages": messages})
    assert param in str(error.value)


def test_a_prompt_that_outgrows_the_context_is_refused_before_anything_is_computed(client: OpenAI) -> None:
    for text in ("word " * 1200, "x" * 40_000):
        with pytest.raises(BadRequestError) as error:
            client.chat.completions.create(**GREEDY | {"messages": [{"role": "user", "content": text}]})
        assert error.value.code == "context_length_exceeded"


def test_switching_thoughts_off_is_no_error_for_a_model_that_has_none(client: OpenAI) -> None:
    usual = client.chat.completions.create(**GREEDY).choices[0].message.content
    for body in ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert client.chat.completions.create(**GREEDY, extra_body=body).choices[0].message.content == usual


def test_how_much_to_think_is_taken_for_a_model_that_never_does(client: OpenAI) -> None:
    said = [
        client.chat.completions.create(**GREEDY | more).choices[0].message for more in ({}, {"reasoning_effort": "low"})
    ]
    assert said[0].content == said[1].content
