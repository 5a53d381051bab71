"""What reads a client's requests, as functions of a liar, for targets.py: bodies, messages and tools, JSON schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from lies import Draw, edited, json_bytes, pick

from smallthinker.generation.constraints import constrained
from smallthinker.server import schemas
from smallthinker.server.body import parse
from smallthinker.server.ollama import schemas as ollama
from smallthinker.text.chat_prompt import chat_prompt
from smallthinker.text.messages import plain_tools

if TYPE_CHECKING:
    from targets import Files

_MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi <|im_end|>"},
    {"role": "assistant", "content": "<think>x</think>y", "tool_calls": []},
    {"role": "user", "content": "go on"},
]
_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9, "pattern": "^[a-z]+$"},
        "n": {"type": "integer", "minimum": 0, "multipleOf": 5},
        "all": {"type": "array", "items": {"$ref": "#/$defs/one"}, "minItems": 1, "maxItems": 4},
        "any": {"anyOf": [{"enum": ["a", 1, None]}, {"const": 2.5}, {"format": "date"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"one": {"type": ["number", "null"]}},
}
_BODIES: list[tuple[type[Any], Any]] = [
    (
        schemas.ChatRequest,
        {
            "messages": [*_MESSAGES, {"role": "assistant", "tool_calls": [_CALL]},
                         {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "1"}]}],
            "tools": [_TOOL], "tool_choice": "auto", "max_tokens": 5, "logit_bias": {"5": 1.5}, "stop": ["a"],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        },
    ),
    (schemas.CompletionRequest, {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 3, "seed": 1}),
    (
        schemas.ResponsesRequest,
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                   {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "a", "output": "1"}],
         "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}},
    ),
    (schemas.EmbeddingRequest, {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
    (schemas.TokenizeRequest, {"messages": _MESSAGES}),
    (ollama.ChatRequest, {"messages": _MESSAGES, "tools": [_TOOL], "format": "json", "options": {"top_k": 4}}),
    (ollama.GenerateRequest, {"prompt": "a", "system": "b", "options": {"num_predict": -1}, "keep_alive": "5m"}),
    (ollama.ShowRequest, {"model": "a", "verbose": True}),
]  # fmt: skip


def body(draw: Draw, files: Files) -> None:
    """What a client sends, and what is made of its messages and tools."""
    schema, seed = pick(draw, _BODIES)
    asked = parse(json_bytes(draw, seed), schema)
    if isinstance(asked, schemas.ChatRequest):
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        chat_prompt(files.tokenizer, asked.messages, tools=plain_tools(tools))


def grammar(draw: Draw, files: Files) -> None:
    """A client's JSON schema, as far as the first tokens that fit it."""
    schema = edited(draw, _SCHEMA)
    if isinstance(schema, dict):
        _, begun = constrained(lambda: files.grammars, None, schema, [], None)
        assert begun is not None
        begun([], np.zeros(300, np.float32))
