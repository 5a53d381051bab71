"""From messages to the token ids of a prompt. Runs on worker threads: a long text takes a while to encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from smallthinker.errors import RequestError
from smallthinker.llm import LLM
from smallthinker.server.errors import bad_request
from smallthinker.server.schemas import Tool
from smallthinker.server.settings import Limits
from smallthinker.text import chat_prompt as chats
from smallthinker.text.chat_prompt import ChatPrompt, check_values, switches, takes_effort

# A token is rarely longer; a text of more bytes a token of the context is refused before it is encoded.
_LONGEST_TOKEN_BYTES = 32


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
    thinking: bool | None = None,
    effort: str | None = None,
    template_values: Mapping[str, Any] | None = None,
) -> ChatPrompt:
    """Raises ApiError, RequestError, and TokenizerError when the model's template refuses the conversation."""
    if len(messages) > limits.messages:
        raise bad_request(f"messages: at most {limits.messages} are taken, found {len(messages)}", "messages")
    template = llm.tokenizer.chat_template.for_tools(tools)
    if not takes_effort(template):
        effort = None  # as official clients send it to every model: one without thoughts thinks as little as it may
    try:
        values = switches(template, thinking, effort, **(template_values or {}))
        check_values(template, values)
    except RequestError as e:
        raise bad_request(str(e), str(e).partition(":")[0], "unsupported_parameter") from None
    with _valid_unicode():
        return chats.chat_prompt(
            llm.tokenizer,
            messages,
            tools=[tool.model_dump(exclude_none=True) for tool in tools],
            values=values,
            check_text=lambda made: _check_length(llm, made),
        )
