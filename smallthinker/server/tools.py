"""Functions that a model may call: how they come into its prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smallthinker.server.schemas import Tool

# For templates that know nothing of tools, in the words of Qwen's: models of many families have learned this form.
_INSTRUCTIONS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """As chat templates want them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


def without_template_support(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation as plain texts: tools in the system message, calls and their results spelled out."""
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    plain = [_spelled_out(message) for message in messages]
    if not tools:
        return plain
    instructions = _INSTRUCTIONS.format(signatures=signatures)
    if plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{instructions}"}, *plain[1:]]
    return [{"role": "system", "content": instructions}, *plain]


def _spelled_out(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    return {"role": message["role"], "content": "\n".join([message["content"], *texts]).lstrip()}
