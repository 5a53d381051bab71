"""Functions that a model may call, for chat templates that don't take them as `tools`: they, calls and results become
parts of messages. Knows nothing about HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smallthinker.text.chat_formats import Block

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


def in_system_message(
    messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], call: Block
) -> list[dict[str, Any]]:
    """As Phi-4-mini's template wants them: a text beside the system message's; calls as the model writes them."""
    plain = [_with_written_calls(message, call) for message in messages]
    if not tools:
        return plain
    if plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": ""})
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    return [plain[0] | {"tools": functions}, *plain[1:]]


def _with_written_calls(message: dict[str, Any], call: Block) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    objects = [json.dumps(one["function"], ensure_ascii=False) for one in calls]
    texts = [message["content"], call.begin[0], "[", ", ".join(objects), "]", *call.end]
    return {"role": message["role"], "content": "".join(texts)}
