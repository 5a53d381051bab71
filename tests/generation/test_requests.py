"""Whatever a caller hands over: it works as in OpenAI's API, or a RequestError says what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallthinker import LLM, AsyncLLM, SmallThinkerError
from smallthinker.errors import RequestError
from smallthinker.generation.answer import GenerationParams
from smallthinker.text.messages import plain_messages

HELLO = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def llm(hybrid_store: Path) -> Iterator[LLM]:
    with LLM(hybrid_store, threads=1, context=128) as llm:
        yield llm


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (2.5, 2.0, "5", True, 0, -1, 10**400, float("nan"), [3], b"5")],
        *[("temperature", value) for value in ("1", True, float("inf"), 10**400, None, [1.0], 1j)],
        *[("top_k", value) for value in (40.0, "40", False, 2**40, None)],
        *[("top_p", value) for value in (True, "0.5", float("nan"), None)],
        *[("min_p", value) for value in (False, "0.5", -0.1)],
        *[("repeat_penalty", value) for value in (True, "1", float("inf"))],
        *[("repeat_last_n", value) for value in (1.5, "64", True)],
        *[("seed", value) for value in (1.0, "1", True, -1, 2**64)],
        *[("stop", value) for value in (5, b"x", [5], [b"x"], ["a", None], {"a": 1}, "\ud800", True)],
        *[("ignore_eos", value) for value in (1, "yes", None)],
        *[("logprobs", value) for value in (True, 1.0, "1", -1, 65)],
        *[("timeout_sec", value) for value in (0, -1, "5", True, float("nan"))],
        *[("logits_processor", value) for value in (5, "x")],
        *[("on_prefill", value) for value in (5, True)],
    ],
)  # fmt: skip
def test_an_option_of_another_kind_is_refused_by_name(llm: LLM, name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: expected ") as refused:
        llm.generate("x", **{"max_tokens": 1, name: value})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "prompt",
    [b"x", bytearray(b"x"), None, 5, True, {"role": "user"}, [1, 2], (1, 2), np.arange(3), {1}, ["x"], [HELLO, "x"], [],
     "", "\udcff", iter([HELLO])],
    ids=lambda prompt: "iterator" if isinstance(prompt, Iterator) else repr(prompt),
)  # fmt: skip
def test_a_prompt_is_text_or_messages(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"^(prompt|messages)"):
        llm.generate(prompt, max_tokens=1)


@pytest.mark.parametrize("prompt", ["x", b"x", None, 5, [1.5], [True], ["1"], {1: 2}, [[1]]], ids=repr)
def test_a_scheduler_takes_token_ids_and_nothing_else(llm: LLM, prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"^prompt: expected a list of token ids, found "):
        llm.scheduler.submit(prompt, GenerationParams())
    with pytest.raises(RequestError, match=r"^ids: expected a list of token ids, found "):
        llm.detokenize(prompt)


def test_what_stands_for_a_number_is_one(llm: LLM) -> None:
    as_numpy = llm.generate(
        "x", max_tokens=np.int64(4), top_k=np.uint8(3), temperature=np.float32(1), seed=np.int16(5), top_p=1
    )
    assert as_numpy.token_ids == llm.generate("x", max_tokens=4, top_k=3, temperature=1, seed=5, top_p=1.0).token_ids
    ids = np.array(llm.tokenize("abc"))
    assert llm.scheduler.submit(ids, GenerationParams(max_tokens=1)).result().stats.prompt_tokens == 3
    assert llm.detokenize(ids) == "abc"
    assert llm.detokenize(iter(ids)) == "abc"


def test_stop_is_a_text_a_list_or_none(llm: LLM) -> None:
    options: dict[str, Any] = {"seed": 3, "max_tokens": 60, "temperature": 1.0, "ignore_eos": True}
    whole = llm.generate("x", **options).text
    assert llm.generate("x", stop=None, **options).text == whole
    stop = whole[20:22]
    assert llm.generate("x", stop=stop, **options).text == llm.generate("x", stop=[stop], **options).text
    assert llm.generate("x", stop=(stop,), **options).text == whole[: whole.find(stop)]


def test_options_of_the_asyncio_interface_are_refused_the_same_way(llm: LLM) -> None:
    async def ask() -> None:
        with pytest.raises(RequestError, match=r"^max_tokens"):
            await AsyncLLM(llm).generate("x", max_tokens=2.5)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"^prompt"):
            AsyncLLM(llm).stream(b"x")  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"^reader"):
            await AsyncLLM.load(reader="x")

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("memory", value) for value in (1.5, True, "", "lots", -1, float("nan"), float("inf"), "9" * 400, [1])],
        *[("context", value) for value in (0, 2.5, True, "64", -1)],
        *[("kv", value) for value in ("x", None, 16)],
        *[("reader", value) for value in ("x", None, 1)],
        *[("threads", value) for value in ("2", 0, 1.5, True, 257)],
        *[("sequences", value) for value in (0, 65, 1.5, "2", True)],
        *[("prefetch", value) for value in (1, "no", None)],
        *[("look_ahead", value) for value in (1, (), None)],
        *[("lossy_threshold", value) for value in ("0", True, float("nan"))],
        *[("max_waiting", value) for value in (0, 1.5, "2", True)],
        *[("reserved", value) for value in (-1, 1.5, "2", True)],
        *[("kv_dir_bytes", value) for value in (-1, 1.5, "x", True)],
        *[("path", value) for value in (5, b"x", True, "a\0b")],
        *[("storage", value) for value in (5, b"x", True)],
        *[("lossy_head", value) for value in (5, b"x")],
        *[("kv_dir", value) for value in (5, b"x")],
        *[("progress", value) for value in (5, "x")],
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_refused_before_anything_is_opened(
    tmp_path: Path, name: str, value: object
) -> None:
    """The folder isn't there: whoever opened it would say so instead."""
    with pytest.raises(RequestError, match=rf"^{name}: expected ") as refused:
        LLM(**{"path": tmp_path / "nowhere", name: value})  # type: ignore[arg-type]
    assert len(str(refused.value)) < 300


def test_memory_may_be_a_whole_float(hybrid_store: Path) -> None:
    with LLM(hybrid_store, memory=1.5e9) as llm:
        assert llm.plan.budget_bytes == 1_500_000_000


def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "annotations": []}]
    assert plain_messages(
        [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": parts, "name": "n"},
            {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None},
        ]
    ) == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "ab", "name": "n"},
        {"role": "assistant", "content": "x"},
    ]


def test_calls_without_content_and_their_results_are_messages() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert plain_messages(
        [{"role": "assistant", "content": None, "tool_calls": [call]},
         {"role": "tool", "content": "2", "tool_call_id": "1"}]
    ) == [
        {"role": "assistant", "content": "", "tool_calls": [call | {"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"content": "x"}, "role"),
        ({"role": "usr", "content": "x"}, "role"),
        ({"role": 5, "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": b"x"}, "content"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "content"),
        ({"role": "user", "content": ["x"]}, "content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "content.0.text"),
        ({"role": "user", "content": [{"text": "x"}]}, "content.0.type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content.0.type"),
        ({"role": "user", "content": "\ud800"}, "content"),
        ({"role": "user", "content": "x", "contents": "y"}, ""),
        ({"role": "user", "content": "x", 5: "y"}, ""),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {}}]}, "tool_calls"),
        ({"role": "assistant"}, "content"),
        ({"role": "assistant", "tool_calls": []}, "content"),
        ({"role": "assistant", "tool_calls": 5}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls.0"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls.0.function.arguments"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]},
         "tool_calls.0.function.arguments"),
        ({"role": "assistant", "tool_calls": [{"type": "x", "function": {"name": "f", "arguments": "{}"}}]},
         "tool_calls.0.type"),
    ],
)  # fmt: skip
def test_a_message_that_is_none_is_refused_by_its_place(llm: LLM, message: Any, place: str) -> None:
    place = rf"^messages\.1{'.' if place else ''}{place}: "
    with pytest.raises(RequestError, match=place):
        llm.chat([HELLO, message], max_tokens=1)


def test_a_part_that_is_no_text_is_named(llm: LLM) -> None:
    with pytest.raises(RequestError, match="found 'image_url'; this model reads only text"):
        llm.chat([{"role": "user", "content": [{"type": "image_url"}]}])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from([1e-320, 1e-300, 1e-38, 1e300]),
    st.text(st.characters(), max_size=6),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "function", "name", "arguments", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "name", "tool_call_id", "refusal", "x"]),
        st.sampled_from(["system", "developer", "user", "assistant", "tool", "text"]) | VALUES,
        max_size=4,
    )
    | VALUES,
    max_size=3,
)


def refusal(call: Callable[[], object]) -> str | None:
    """Of what may also be answered; anything but the project's own errors breaks the test."""
    try:
        call()
    except SmallThinkerError as error:
        return str(error)
    return None


@given(messages=VALUES | MESSAGES)
@settings(max_examples=300)
def test_any_shape_of_messages_becomes_plain_ones_or_is_refused(messages: Any) -> None:
    refused = refusal(lambda: plain_messages(messages))
    if refused is not None:
        assert "\n" not in refused and len(refused) < 400
    else:
        plain = plain_messages(messages)
        assert all(isinstance(message["content"], str) and isinstance(message["role"], str) for message in plain)


@given(prompt=VALUES | MESSAGES)
@settings(max_examples=60)
def test_any_prompt_is_answered_or_refused(llm: LLM, prompt: Any) -> None:
    assert "\n" not in (refusal(lambda: llm.generate(prompt, max_tokens=1)) or "")


@given(
    options=st.dictionaries(
        st.sampled_from(
            ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop", "logprobs",
             "ignore_eos", "max_tokens", "timeout_sec"]
        ),
        SCALARS | st.lists(SCALARS, max_size=2) | st.floats(0, 1) | st.integers(0, 100),
        max_size=5,
    )
)  # fmt: skip
@settings(max_examples=100)
@example({"repeat_penalty": 1e-300})
@example({"repeat_penalty": 1e-38, "temperature": 1e-320})
@example({"repeat_penalty": 1.7e308, "temperature": 1.7e308})
def test_any_option_is_followed_or_refused(llm: LLM, options: dict[str, Any]) -> None:
    assert "\n" not in (refusal(lambda: llm.generate("x", **{"seed": 1, "max_tokens": 2} | options)) or "")
