"""A conversation and tools as type checkers see them: the dictionaries that OpenAI's clients write.

Types alone; `messages` checks what is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(TypedDict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(TypedDict):
    """`arguments`: a JSON object, or its text."""

    name: str
    arguments: str | Mapping[str, Any]


class _Call(TypedDict):
    function: CalledFunction


class ToolCall(_Call, total=False):
    """What an assistant asked for, as it is sent back: of an answer's `Call`."""

    id: str
    type: Literal["function"]


class _Message(TypedDict):
    role: Role


class Message(_Message, total=False):
    """One turn of a conversation. `tool_call_id`: the call whose result a tool's message is."""

    content: str | Sequence[TextPart] | None
    name: str
    tool_calls: Sequence[ToolCall]
    tool_call_id: str
    reasoning_content: str


class _Function(TypedDict):
    name: str


class FunctionSchema(_Function, total=False):
    """`parameters`: a JSON schema of the arguments."""

    description: str
    parameters: Mapping[str, Any]
    strict: bool


class Tool(TypedDict):
    """A function that a model may call."""

    type: Literal["function"]
    function: FunctionSchema
