"""A chat's prompt: messages, tools and switches to token ids, and how to read the answer to them.

The one place where template, its format and the tokenizer come together, for the Python interface, `chat` and the
server. Knows nothing about HTTP.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smallthinker.arguments import json_value
from smallthinker.errors import RequestError
from smallthinker.text.answer_parser import AnswerParser
from smallthinker.text.call_payloads import Tools
from smallthinker.text.chat_formats import Block, ChatFormat, chat_format
from smallthinker.text.chat_template import ChatTemplate
from smallthinker.text.marks import Marks
from smallthinker.text.messages import plain_messages
from smallthinker.text.tokenizer import Tokenizer
from smallthinker.text.tool_texts import in_system_message, without_template_support

_OPENED_CHARACTERS = 256  # of a prompt's end, where it may have opened a part of the answer
_TOOLS_IN_SYSTEM = "message['tools']"
# The switch for thoughts by the names that templates have for it, and the values that they take.
_SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class AnswerFormat:
    """How to read one answer. opened: the end of the prompt that has opened a part of it. has_thought: the prompt ends
    with a thought, often an empty one. ends: ids of tokens that end it beside those of the model's configuration.
    tools: see AnswerParser."""

    format: ChatFormat = field(default_factory=ChatFormat)
    tools: Tools | None = None
    opened: str = ""
    has_thought: bool = False
    ends: tuple[int, ...] = ()

    def parser(self, marks: Marks) -> AnswerParser:
        return AnswerParser(self.format, marks, tools=self.tools, opened=self.opened)

    @property
    def is_thinking(self) -> bool:
        """Whether the prompt has opened a thought."""
        return self.parser(Marks()).is_thinking


@dataclass(frozen=True)
class ChatPrompt:
    ids: list[int]
    answer: AnswerFormat


def chat_prompt(
    tokenizer: Tokenizer,
    messages: object,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    values: Mapping[str, Any] | None = None,
    check_text: Callable[[str], None] = lambda text: None,
) -> ChatPrompt:
    """tools: as OpenAI's clients write them. values: what else the template asks for, as `switches` gives them.
    check_text: told the prompt before it is encoded.

    Raises RequestError, and TokenizerError when there is no template or it refuses the conversation.
    """
    template = tokenizer.chat_template.for_tools(tools)
    format = chat_format(template.source)
    check_values(template, values or {})
    plain = plain_messages(messages)
    thoughts_off = any((values or {}).get(switch) is False for switch in _SWITCHES)
    plain_text = tokenizer.plain_text(also=[begin for block in format.of("thought") for begin in block.begin])
    plain = _with_ids(plain, next((block.id_length for block in format.of("call")), 0))
    plain = plain_text.protect_messages(plain)
    functions = plain_text.protect([dict(tool) for tool in tools])
    given = plain_text.protect(values or {})
    if "tools" in template.variables:
        given["tools"] = functions or None
    elif _TOOLS_IN_SYSTEM in template.source:
        plain = in_system_message(plain, functions, format.of("call")[0])
    else:
        plain = without_template_support(plain, functions)
        format = format.with_default_calls()
    text = tokenizer.render_chat(plain, **given)
    check_text(plain_text.reveal(text))
    opened = _opened(text, format)
    has_thought = any(text.rstrip().endswith(end) for block in format.of("thought") for end in block.end)
    if has_thought or (thoughts_off and not opened):
        format = format.without_thoughts()
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    answer = AnswerFormat(format, schemas if tools else None, opened, has_thought, tokenizer.ids_of(format.ends))
    return ChatPrompt(plain_text.encode(text)[0], answer)


def switches(
    template: ChatTemplate, thinking: bool | None = None, effort: str | None = None, **more: Any
) -> dict[str, Any]:
    """A template's values for what a user asks of thoughts. Where it has no switch, it takes what it does anyway.
    Raises RequestError."""
    values, asked = dict(more), "enable_thinking"
    if effort is not None and EFFORT in template.variables:
        values[EFFORT] = effort
    elif effort is not None and thinking is None:
        thinking, asked = effort != "none", EFFORT
    if thinking is None:
        return values
    switch = next((name for name in _SWITCHES if name in template.variables), None)
    if switch is not None:
        values[switch] = thinking
    elif thinking and not (asked == EFFORT and chat_format(template.source).thinks):
        raise RequestError(f"{asked}: this model's chat template has no such switch")
    return values


def takes_effort(template: ChatTemplate) -> bool:
    """Whether how much to think means anything to the model."""
    return EFFORT in template.variables or can_switch_thinking(template) or chat_format(template.source).thinks


def can_switch_thinking(template: ChatTemplate) -> bool:
    return any(switch in template.variables for switch in _SWITCHES)


def check_values(template: ChatTemplate, values: Mapping[str, Any]) -> None:
    """Raises RequestError for what the template would ignore, or gets from elsewhere, and for what no JSON has."""
    for name, value in values.items():
        json_value("template_values", {name: value}, "JSON values")
    unknown = next((name for name in values if name not in template.variables or name in ("messages", "tools")), None)
    if unknown is not None:
        raise RequestError(f"{unknown}: this model's chat template has no such switch")


def _opened(text: str, format: ChatFormat) -> str:
    """The end of a prompt from where it opens a thought, or the header of any part."""
    tail = text[-_OPENED_CHARACTERS:].rstrip()
    blocks = [block for block in format.blocks if block.kind != "call" or block.header_end]
    found = [(tail.rfind(begin), block) for block in blocks for begin in block.begin]
    at = max((at for at, _ in found), default=-1)
    if at < 0:
        return ""
    return tail[at:] if any(_is_open(tail[at:], block) for begun, block in found if begun == at) else ""


def _is_open(text: str, block: Block) -> bool:
    begin = next(begin for begin in block.begin if text.startswith(begin))
    inside = text[len(begin) :]
    content = inside.partition(block.header_end)[2] if block.header_end else inside
    return not content.strip() and not any(end in inside for end in block.end)


def _with_ids(messages: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Where a template takes only ids of one length, others become such; the same ones the same."""
    if not length:
        return messages

    def short(id: str) -> str:
        return id if len(id) == length and id.isalnum() else format(zlib.crc32(id.encode()), f"0{length}x")

    short_ids = []
    for message in messages:
        message = dict(message)
        if "tool_call_id" in message:
            message["tool_call_id"] = short(message["tool_call_id"])
        if "tool_calls" in message:
            message["tool_calls"] = [call | {"id": short(call["id"])} if "id" in call else call
                                     for call in message["tool_calls"]]  # fmt: skip
        short_ids.append(message)
    return short_ids
