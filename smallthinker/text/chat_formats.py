"""How models of each family write thoughts, calls and the end of their turn: a table, and what of it a template means.

A row counts where all its signs stand in the chat template. To teach the engine another family's notation is to add a
row; the one state machine in `answer_parser` reads them all. Nothing here asks for a family's name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from smallthinker.text.call_payloads import NAME, Bare, Json, Payload, Tagged

_JSON = Json()


@dataclass(frozen=True)
class Block:
    """A part of an answer between marks. Marks are texts; where one is the name of a special token, only the token is.

    begin: what opens it; '' for a call that an answer begins with, without any mark. end: what closes it. header_end:
    with it a header stands before the content, and `header` is a pattern to be found there, whose group is the name of
    the function. written: as `begin` with its header is usually written, for answers that are held to a grammar;
    %s is the function's name, and what follows up to `closed` is the JSON of its arguments. id_length: of the ids of
    calls, where a template takes no others.
    """

    kind: Literal["thought", "said", "call"]
    begin: tuple[str, ...]
    end: tuple[str, ...] = ()
    header_end: str = ""
    header: str = ""
    payload: Payload = _JSON
    written: str = ""
    closed: str = ""
    id_length: int = 0

    @property
    def marks(self) -> tuple[str, ...]:
        inner = self.payload.marks if self.kind == "call" else ()
        return tuple(filter(None, (*self.begin, *self.end, self.header_end, *inner)))


@dataclass(frozen=True)
class ChatFormat:
    """Of one chat template. ends: names of tokens that end a turn, where the vocabulary has them. resumes, says: what
    is written between a thought and what is said."""

    blocks: tuple[Block, ...] = ()
    ends: tuple[str, ...] = ()
    resumes: str = ""
    says: str = ""

    def of(self, kind: str) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks if block.kind == kind)

    @property
    def thinks(self) -> bool:
        return bool(self.of("thought"))

    @property
    def marks(self) -> frozenset[str]:
        return frozenset(mark for block in self.blocks for mark in block.marks)

    def without_thoughts(self) -> ChatFormat:
        """Where the template has been told that there shall be none. Blocks with headers stay: all is in such."""
        return replace(self, blocks=tuple(b for b in self.blocks if b.kind != "thought" or b.header_end))

    def with_default_calls(self) -> ChatFormat:
        """As models of many families have learned from Hermes and Qwen, where another form can't be asked for."""
        return replace(self, blocks=(*(b for b in self.blocks if b.kind != "call"), HERMES_CALL))


HERMES_CALL = Block(
    "call", ("<tool_call>",), ("</tool_call>",),
    written='<tool_call>\n{"name": "%s", "arguments": ', closed="}\n</tool_call>",
)  # fmt: skip

_CHANNEL, _MESSAGE = ("<|start|>", "<|channel|>"), "<|message|>"
_Signs = tuple[str, ...]

# What every row that has its signs adds.
_THOUGHTS: tuple[tuple[_Signs, tuple[Block, ...]], ...] = (
    # Qwen3, SmallThinker, GLM-4.5 and later, SmolLM3, DeepSeek, Granite
    (("<think>",), (Block("thought", ("<think>",), ("</think>",), written="<think>"),)),
    # Magistral, Ministral 3
    (("[THINK]",), (Block("thought", ("[THINK]",), ("[/THINK]",), written="[THINK]"),)),
    # gpt-oss
    (("<|channel|>", "<|message|>"), (
        Block("thought", _CHANNEL, ("<|end|>",), _MESSAGE, "analysis", written="<|channel|>analysis<|message|>"),
        Block("said", _CHANNEL, ("<|end|>",), _MESSAGE, r"^(?!.*to=).*(?:final|commentary)"),
    )),
    # Gemma 4
    (("<|channel>", "<channel|>"), (
        Block("thought", ("<|channel>",), ("<channel|>",), "\n", "^thought$", written="<|channel>thought\n"),
    )),
)  # fmt: skip

# The first row that has its signs.
_CALLS: tuple[tuple[_Signs, Block], ...] = (
    # gpt-oss
    (("<|channel|>", "<|message|>", "functions."), Block(
        "call", _CHANNEL, ("<|call|>", "<|end|>"), _MESSAGE, rf"to=(?:functions\.)?({NAME})",
        written="<|channel|>commentary to=functions.%s <|constrain|>json<|message|>",
    )),
    # GLM-4.5 and later
    (("<tool_call>", "<arg_key>"), Block(
        "call", ("<tool_call>",), ("</tool_call>",),
        payload=Tagged(("", ""), ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>")),
    )),
    # Qwen3-Coder, Qwen3.5
    (("<tool_call>", "<function=", "<parameter="), Block(
        "call", ("<tool_call>",), ("</tool_call>",),
        payload=Tagged(("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), "</function>", lines=True),
    )),
    # Mistral from version 11 of its tokenizer on: Mistral Small 3.2, Magistral, Devstral, Ministral 3
    (("[TOOL_CALLS]", "[ARGS]"), Block(
        "call", ("[TOOL_CALLS]",), header_end="[ARGS]", header=rf"^\s*({NAME})", written="[TOOL_CALLS]%s[ARGS]",
        id_length=9,
    )),
    # Mistral before: Nemo, 7B v0.3, Small 3
    (("[TOOL_CALLS]",), Block(
        "call", ("[TOOL_CALLS]",), written='[TOOL_CALLS][{"name": "%s", "arguments": ', closed="}]", id_length=9,
    )),
    # Gemma 4
    (("<|tool_call>", "<tool_call|>"), Block(
        "call", ("<|tool_call>",), ("<tool_call|>",), payload=Bare('<|"|>'),
    )),
    # Phi-4-mini, whose template has only the tools; Granite 3
    (("<|tool|>", "<|/tool|>"), Block(
        "call", ("<|tool_call|>", "functools"), ("<|/tool_call|>",),
        written='<|tool_call|>[{"name": "%s", "arguments": ', closed="}]<|/tool_call|>",
    )),
    (("<|tool_call|>",), Block(
        "call", ("<|tool_call|>",), written='<|tool_call|>[{"name": "%s", "arguments": ', closed="}]",
    )),
    # Llama 3.1 and later: an object alone, or behind a token
    (("<|start_header_id|>", '"parameters"'), Block(
        "call", ("<|python_tag|>", ""), written='{"name": "%s", "parameters": ', closed="}",
    )),
    # Qwen, SmallThinker, SmolLM3, Hermes, Granite 4
    (("<tool_call>",), HERMES_CALL),
)  # fmt: skip

# What ends a turn beside the ids that the model's configuration has; every row that has its signs.
_ENDS: tuple[tuple[_Signs, tuple[str, ...]], ...] = (
    (("<|im_start|>",), ("<|im_end|>",)),
    (("<|start_header_id|>",), ("<|eot_id|>", "<|eom_id|>")),
    (("<|header_start|>",), ("<|eot|>", "<|eom|>")),
    (("<start_of_turn>",), ("<end_of_turn>",)),
    (("<|turn>",), ("<turn|>", "<|tool_response>")),
    (("<|channel|>", "<|message|>"), ("<|return|>", "<|call|>")),
    (("<|observation|>",), ("<|user|>", "<|observation|>", "<|endoftext|>")),
    (("[/INST]",), ("</s>",)),
    (("<|tool|>", "<|/tool|>"), ("<|end|>", "<|endoftext|>")),
    (("<|start_of_role|>",), ("<|end_of_text|>",)),
)
# Phi-3 and Phi-4, whose templates put a role's token together; gpt-oss has the same name for the end of a part.
_PHI_END, _NOT_PHI = "<|end|>", "<|channel|>"


def chat_format(template: str) -> ChatFormat:
    """What a chat template's text shows that the model has learned."""
    blocks: Iterable[Block] = (block for signs, row in _THOUGHTS if _has(template, signs) for block in row)
    calls = next((block for signs, block in _CALLS if _has(template, signs)), HERMES_CALL)
    ends = [name for signs, names in _ENDS if _has(template, signs) for name in names]
    if _PHI_END in template and _NOT_PHI not in template:
        ends.append(_PHI_END)
    channels = _has(template, ("<|channel|>", "<|message|>"))
    return ChatFormat(
        (calls, *blocks),
        tuple(dict.fromkeys(ends)),
        resumes="<|start|>assistant" if channels else "",
        says="<|channel|>final<|message|>" if channels else "",
    )


def _has(template: str, signs: Collection[str]) -> bool:
    return all(sign in template for sign in signs)
