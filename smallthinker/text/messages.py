"""A conversation as OpenAI's clients write it, checked and made plain for a chat template: the one place for the Python
interface, `chat` and the server.

Knows nothing about templates. What is wrong is a RequestError that begins with its place, as `messages.0.content`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.arguments import choice, found, is_list, json_value, refuse, text
from smallthinker.errors import RequestError
from smallthinker.files import parse_json
from smallthinker.text.chat_template import REASONING

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
_TEXTS = ("name", "tool_call_id", *REASONING)  # handed on as they are
_SENT_BACK = ("annotations", "index", "logprobs")  # what answers have and prompts have no use for


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """As templates expect them: content is text ('' for None, parts joined), a developer is system, the arguments of
    calls are values. Raises RequestError."""
    if not is_list(messages):
        refuse("messages", 'a list of {"role": ..., "content": ...}', messages)
    if not messages:
        raise RequestError("messages: expected at least one, found none")
    return [_message(message, f"messages.{at}") for at, message in enumerate(messages)]


def plain_tools(tools: object) -> list[dict[str, Any]]:
    """Functions that may be called, checked: {"type": "function", "function": {"name": ..., "parameters": ...}}. Raises
    RequestError."""
    if tools is None:
        return []
    if not is_list(tools):
        refuse("tools", "a list of functions", tools)
    return [_tool(tool, f"tools.{at}") for at, tool in enumerate(tools)]


def _tool(given: object, place: str) -> dict[str, Any]:
    tool = _fields(given, place, '{"type": "function", "function": ...}', ("type", "function"))
    choice(f"{place}.type", tool.get("type", "function"), ("function",))
    expected = '{"name": ..., "description": ..., "parameters": ...}'
    function = tool.get("function")
    if not isinstance(function, Mapping):
        refuse(f"{place}.function", expected, function)
    text(f"{place}.function.name", function.get("name"))
    if not isinstance(function.get("parameters") or {}, Mapping):
        refuse(f"{place}.function.parameters", "a JSON schema", function["parameters"])
    json_value(f"{place}.function", dict(function), expected)
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _message(given: object, place: str) -> dict[str, Any]:
    fields = _fields(given, place, '{"role": ..., "content": ...}', ("role", "content", "tool_calls", *_TEXTS))
    role = choice(f"{place}.role", fields.get("role"), ROLES)
    calls = fields.get("tool_calls", [])
    if not is_list(calls):
        refuse(f"{place}.tool_calls", "a list of calls", calls)
    if calls and role != "assistant":
        raise RequestError(f"{place}.tool_calls: only an assistant calls functions, found role {role}")
    if "content" not in fields and not calls:
        raise RequestError(f"{place}.content: expected text, found none")
    plain = {
        "role": "system" if role == "developer" else role,
        "content": _content(fields.get("content", ""), f"{place}.content"),
    }
    plain |= {name: text(f"{place}.{name}", fields[name]) for name in _TEXTS if name in fields}
    if not calls:
        return plain
    return plain | {"tool_calls": [_call(call, f"{place}.tool_calls.{at}") for at, call in enumerate(calls)]}


def _content(content: object, place: str) -> str:
    if not is_list(content):
        return text(place, content, "text or a list of text parts")
    return "".join(_part(part, f"{place}.{at}") for at, part in enumerate(content))


def _part(given: object, place: str) -> str:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise RequestError(f"{place}.type: expected text, found {found(kind)}; this model reads only text")
    fields = _fields(given, place, '{"type": "text", "text": ...}', ("type", "text"))
    choice(f"{place}.type", kind, _TEXT_PARTS)
    return text(f"{place}.text", fields.get("text"))


def _call(given: object, place: str) -> dict[str, Any]:
    call = _fields(given, place, '{"id": ..., "type": "function", "function": ...}', ("id", "type", "function"))
    choice(f"{place}.type", call.get("type", "function"), ("function",))
    function = _fields(
        call.get("function"), f"{place}.function", '{"name": ..., "arguments": ...}', ("name", "arguments")
    )
    plain = {
        "name": text(f"{place}.function.name", function.get("name")),
        "arguments": _arguments(function.get("arguments"), f"{place}.function.arguments"),
    }
    named = {"id": text(f"{place}.id", call["id"])} if "id" in call else {}
    return named | {"type": "function", "function": plain}


def _arguments(given: object, place: str) -> object:
    """A JSON object, or the text of one; other text stays what it is, as what a model may have written."""
    if not isinstance(given, str):
        if not isinstance(given, dict):
            refuse(place, "a JSON object, or its text", given)
        json_value(place, given, "a JSON object")
        return given
    given = text(place, given)
    try:
        value = parse_json(given)
        json_value(place, value, "a JSON object")  # an escape can write half a surrogate pair
    except ValueError:
        return given
    return value if isinstance(value, dict) else given


def _fields(given: object, place: str, expected: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Those that are not None. Clients write null for what they don't ask for, also in fields unknown here."""
    if not isinstance(given, Mapping):
        refuse(place, expected, given)
    fields = {key: value for key, value in given.items() if value is not None and key not in _SENT_BACK}
    unknown = next((key for key in fields if key not in known), None)
    if unknown is not None:
        raise RequestError(f"{place}: expected {', '.join(known)}, found {found(unknown)}")
    return fields
