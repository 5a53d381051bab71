"""From messages to the token ids of a prompt. Runs on worker threads: a long text takes a while to encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smallthinker.llm import LLM
from smallthinker.server.errors import bad_request
from smallthinker.server.output import THINK, THOUGHT
from smallthinker.server.schemas import Tool
from smallthinker.server.settings import Limits
from smallthinker.server.tools import plain_tools, without_template_support
from smallthinker.text.messages import plain_messages

# A token is rarely longer; a text of more bytes a token of the context is refused before it is encoded.
_LONGEST_TOKEN_BYTES = 32


@dataclass(frozen=True)
class Prompt:
    """thinks: the model may begin with a thought; thinking: the prompt has opened one."""

    ids: list[int]
    thinks: bool = False
    thinking: bool = False

    @property
    def thought(self) -> tuple[str, str] | None:
        """Begin and end of one in the answer."""
        if self.thinking:
            return "", THOUGHT
        return (THINK, THOUGHT) if self.thinks else None


def encode(llm: LLM, text: str, *, special_tokens: bool = False, is_prompt: bool = False) -> list[int]:
    """is_prompt: with what the model's texts begin with. Raises ApiError for what can't fit the context, however it is
    cut into tokens."""
    _check_length(llm, text)
    with _valid_unicode():
        make = llm.tokenizer.encode_prompt if is_prompt else llm.tokenizer.encode
        return make(text, special_tokens=special_tokens)


def _check_length(llm: LLM, text: str) -> None:
    context = llm.plan.context
    if len(text) > context * _LONGEST_TOKEN_BYTES:
        raise bad_request(
            f"the prompt has {len(text):,} characters, more than {context:,} tokens of context can hold",
            "messages",
            "context_length_exceeded",
        )


@contextmanager
def _valid_unicode() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError:  # half a surrogate pair
        raise bad_request("the text is not valid Unicode", "messages") from None


def chat_prompt(
    llm: LLM,
    limits: Limits,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Tool] = (),
    enable_thinking: bool | None = None,
    template_values: Mapping[str, Any] | None = None,
) -> Prompt:
    """Raises ApiError, RequestError, and TokenizerError when the model's template refuses the conversation."""
    if len(messages) > limits.messages:
        raise bad_request(f"messages: at most {limits.messages} are taken, found {len(messages)}", "messages")
    template = llm.tokenizer.chat_template
    values = dict(template_values or {})
    if enable_thinking is not None:
        values["enable_thinking"] = enable_thinking
    if values.get("enable_thinking") is False and "enable_thinking" not in template.variables:
        del values["enable_thinking"]  # not thinking is all that such a model can do
    unknown = next((name for name in values if name not in template.variables or name in ("messages", "tools")), None)
    if unknown is not None:
        raise bad_request(f"{unknown}: this model's chat template has no such switch", unknown, "unsupported_parameter")
    plain_text = llm.tokenizer.plain_text(also=[THINK])
    plain = plain_text.protect_messages(plain_messages(messages))
    signatures, values = plain_text.protect(plain_tools(tools)), plain_text.protect(values)
    if "tools" in template.variables:
        values["tools"] = signatures or None
    else:
        plain = without_template_support(plain, signatures)
    text = llm.tokenizer.render_chat(plain, **values)
    _check_length(llm, plain_text.reveal(text))
    opened = text.rstrip().endswith(THINK)
    with _valid_unicode():
        return Prompt(plain_text.encode(text)[0], thinks=THINK in template.source, thinking=opened)
