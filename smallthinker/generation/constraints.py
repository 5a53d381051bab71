"""What a Python caller says of an answer's form: a JSON schema that it keeps to, or a function that it must call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallthinker.arguments import json_value, refuse
from smallthinker.errors import RequestError
from smallthinker.generation.answer import LogitsProcessor
from smallthinker.text.chat_prompt import AnswerFormat

if TYPE_CHECKING:
    from smallthinker.generation.grammar import Grammars


MIB = 1 << 20
# A token of the vocabulary in llguidance's tries while they are made: 34 MiB for 151,936 of them, measured.
GRAMMAR_BYTES_PER_TOKEN = 256
# Its states at work, 2 kB each of at most 8,000.
_STATES_BYTES = 16 * MIB


def grammar_bytes(vocab_size: int) -> int:
    """What the first answer in a form comes to hold beside the model."""
    return GRAMMAR_BYTES_PER_TOKEN * vocab_size + _STATES_BYTES


def offered(tools: list[dict[str, Any]], choice: object) -> list[dict[str, Any]]:
    """The tools that the model is told of. Raises RequestError for a choice that isn't there."""
    names = [tool["function"]["name"] for tool in tools]
    if choice is None or choice == "auto":
        return tools
    if choice == "none":
        return []
    if not isinstance(choice, str) or (choice != "required" and choice not in names):
        known = ", ".join(names) or "no tools"
        refuse("tool_choice", f"auto, none, required or the name of a function ({known})", choice)
    if not tools:
        raise RequestError("tool_choice: there are no tools to choose from")
    return tools


def constrained(
    grammars: Callable[[], Grammars],
    answer: AnswerFormat | None,
    schema: object,
    tools: Sequence[Mapping[str, Any]],
    choice: str | None,
) -> tuple[AnswerFormat | None, LogitsProcessor | None]:
    """What keeps the answer to the schema, or to a call of one of the tools, as `offered` has checked them; and how
    that answer is read. answer: None for a text that is continued. Raises RequestError."""
    must_call = bool(tools) and choice not in (None, "auto", "none")
    if schema is None and not must_call:
        return answer, None
    if schema is not None and must_call:
        raise RequestError("json_schema: an answer can't be both JSON and a tool's call")
    if schema is not None:
        if not isinstance(schema, Mapping):
            refuse("json_schema", "a JSON schema, such as {'type': 'object'}", schema)
        json_value("json_schema", schema, "a JSON schema")
        return answer, grammars().of_schema(schema, "json_schema", answer or AnswerFormat()).begin()
    from smallthinker.generation.grammar import Function, writable

    assert answer is not None
    functions = [tool["function"] for tool in tools]
    wanted = [
        Function(function["name"], function.get("parameters"))
        for function in functions
        if choice == "required" or function["name"] == choice
    ]
    answer = writable(answer)
    return answer, grammars().of_calls(wanted, "tools", answer).begin()
