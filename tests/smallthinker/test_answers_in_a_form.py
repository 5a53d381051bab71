"""JSON schemas, tools that must be called and logprobs in Python, without a package of the server's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from smallthinker import LLM, Message, Tool
from smallthinker.errors import MemoryBudgetError, RequestError
from smallthinker.generation.constraints import MIB, grammar_bytes

MESSAGES: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "Is the sea calm?"}]}]
TOOLS: list[Tool] = [
    {"type": "function", "function": {"name": "look", "parameters": {"enum": [{"at": "sea"}]}}},
    {"type": "function", "function": {"name": "wait"}},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(context=512, threads=1) as llm:
        yield llm


def test_an_answer_and_a_continued_text_keep_to_a_schema(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"calm": {"type": "boolean"}}, "required": ["calm"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    for prompt in (MESSAGES, "Is the sea calm?"):
        found = json.loads(llm.generate(prompt, json_schema=schema, seed=1).text)
        assert list(found) == ["calm"] and isinstance(found["calm"], bool)
    assert llm.generate("x", json_schema={"type": "object"}, max_tokens=3).text.startswith("{")


def test_a_function_that_must_be_called_is(llm: LLM) -> None:
    for choice, name, arguments in (("look", "look", {"at": "sea"}), ("wait", "wait", {})):
        (call,) = llm.chat(MESSAGES, tools=TOOLS, tool_choice=choice).calls
        assert (call.name, json.loads(call.arguments)) == (name, arguments)
    (call,) = llm.chat(MESSAGES, tools=TOOLS, tool_choice="required").calls
    assert call.name in ("look", "wait")
    said: Message = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}],
    }
    result: Message = {"role": "tool", "tool_call_id": call.id, "content": "calm"}
    assert llm.chat([*MESSAGES, said, result], tools=TOOLS, tool_choice="none", max_tokens=2).calls == ()


@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 512, float(-(2**63))])
def test_the_number_that_would_end_the_process_is_refused(llm: LLM, number: float) -> None:
    schemas: list[Any] = [
        {"const": number}, {"enum": [1, {"a": [number]}]}, {"type": "integer", "minimum": number, "maximum": number}
    ]  # fmt: skip
    for schema in schemas:
        with pytest.raises(RequestError, match=r"^json_schema: numbers as low as -9223372036854775808"):
            llm.generate("x", json_schema=schema)
        tool: Tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}
        with pytest.raises(RequestError, match=r"^tools: numbers as low as"):
            llm.chat(MESSAGES, tools=[tool], tool_choice="required")
    assert llm.generate("x", json_schema={"const": -(2**62)}, max_tokens=3).token_ids


def test_a_processor_of_the_caller_s_own_comes_before_the_schema(llm: LLM) -> None:
    seen: list[int] = []
    answer = llm.generate("x", json_schema={"enum": [12]}, logits_processor=lambda ids, logits: seen.append(len(ids)))
    assert answer.text == "12" and seen[0] == 0


def test_the_first_schema_takes_its_memory_of_the_budget_or_names_one_that_is_enough() -> None:
    with pytest.raises(MemoryBudgetError) as refused:
        LLM(memory="1MiB", context=64, threads=1)
    tight = refused.value.floor_bytes + 2 * MIB
    with LLM(memory=tight, context=64, threads=1) as llm:
        with pytest.raises(MemoryBudgetError, match=r"^json_schema, tool_choice: memory: .* give `memory=") as lacking:
            llm.generate("x", json_schema={"enum": [12]})
        assert llm.generate("x", max_tokens=1).token_ids  # nothing else has changed
    with LLM(memory=lacking.value.floor_bytes + 8 * MIB, context=64, threads=1) as llm:
        before = llm.plan
        assert llm.generate("x", json_schema={"enum": [12]}).text == "12"
        needed = grammar_bytes(llm.config.vocab_size)
        assert llm.plan.interpreter_bytes == before.interpreter_bytes + needed
        assert llm.plan.slots < before.slots or before.slots == llm.plan.num_experts
        assert llm.generate("x", json_schema={"enum": [13]}).text == "13"
        assert llm.plan.interpreter_bytes == before.interpreter_bytes + needed  # once


def test_a_first_schema_within_a_callback_is_refused_where_it_would_wait_for_itself() -> None:
    faults: list[Exception] = []

    def processor(ids: object, logits: object) -> None:
        with pytest.raises(RequestError, match="the one that computes") as fault:
            llm.submit("x", json_schema={"enum": [12]})
        faults.append(fault.value)

    with LLM(context=64, threads=1) as llm:
        llm.generate("x", max_tokens=1, logits_processor=processor)
    assert len(faults) == 1


def test_logprobs_are_there_beside_a_schema(llm: LLM) -> None:
    answer = llm.generate("x", json_schema={"enum": [12]}, logprobs=2)
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in answer.logprobs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": 7}, "json_schema: expected a JSON schema"),
        ({"json_schema": {"enum": [{1}]}}, "json_schema: expected a JSON schema"),
        ({"json_schema": {"not": {}}}, "json_schema: not a schema that can be kept to"),
        ({"json_schema": {"enum": ["x" * 70_000]}}, "json_schema: at most"),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"tools": TOOLS, "tool_choice": "sing"}, "tool_choice: expected auto, none, required or the name"),
        ({"tools": TOOLS, "tool_choice": "look", "json_schema": {}}, "json_schema: an answer can't be both"),
    ],
)
def test_what_can_t_be_kept_to_is_refused_before_anything_is_computed(
    llm: LLM, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        llm.chat(MESSAGES, **options)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="tool_choice: only for messages"):
        llm.generate("x", tool_choice="auto")


def test_it_needs_nothing_of_the_server_s_and_says_what_it_lacks() -> None:
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
from smallthinker import LLM
from smallthinker.errors import MemoryBudgetError, RequestError
from smallthinker.generation.constraints import MIB, grammar_bytes
with LLM(context=256, threads=1) as llm:
    print(llm.generate("x", json_schema={"enum": [12]}).text)
    print([name for name in ("starlette", "pydantic", "uvicorn") if name in sys.modules])
sys.modules["llguidance"] = None
sys.modules.pop("smallthinker.generation.grammar")
with LLM(context=256, threads=1) as llm:
    try:
        llm.generate("x", json_schema={"enum": [12]})
    except RequestError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded, text, modules, closing, _, said, _ = done.stdout.splitlines()
    assert (text, modules, done.stderr) == ("12", "[]", "")
    assert said == "json_schema, tool_choice: need llguidance: pip install 'smallthinker[json]'"
    assert loaded.startswith("smallthinker INFO loaded ") and closing.startswith("smallthinker INFO closing ")
