"""From messages to the text of a prompt: the chat template of a model, in a sandbox, since it comes from a file.

A template is given what transformers gives it. Knows nothing about tokens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.errors import TokenizerError, one_line
from smallthinker.files import SmallFiles, parse_json

if TYPE_CHECKING:
    from smallthinker.sandbox.environment import Sandbox

TEMPLATE_FILE = "chat_template.jinja"
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what an assistant thought, in messages; the first is that of the others' meaning."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NONE = "chat needs the model's chat_template, and it has none; have it continue a text instead"
_SHOWN = 300  # characters of what a template says of itself
_MAX_DATE_FORMAT = 100


class NoChatTemplateError(TokenizerError):
    """A model has none."""


@dataclass(frozen=True)
class ChatTemplate:
    """What turns messages into a prompt. `variables`: the names that it asks for beside the messages, such as `tools`
    or `enable_thinking`; what it doesn't ask for would be ignored. `with_tools`: the one to be used where there are
    tools, for models that have two."""

    path: Path
    source: str
    variables: frozenset[str]
    template: Any = field(repr=False)
    special_tokens: Mapping[str, str]
    sandbox: Sandbox = field(repr=False)
    with_tools: ChatTemplate | None = field(default=None, repr=False)
    _rendering: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def for_tools(self, tools: object) -> ChatTemplate:
        """This one, or that for prompts with tools."""
        return self.with_tools if tools and self.with_tools is not None else self

    def render(self, messages: Iterable[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt, ready for the assistant's answer. Raises TokenizerError, also where it takes too much time or
        memory: over about two seconds, or 64 MiB."""
        # templates ask for `tools is not none`, as transformers always hands them
        known = {"tools": None, "documents": None, **self.special_tokens, **variables}
        known |= {"messages": [_with_reasoning(message) for message in messages], "add_generation_prompt": True}
        try:
            with self._rendering:
                text = self.sandbox.render(self.template, known)
                text.encode()  # half a surrogate pair, as JSON can write one, is no text that has tokens
                return text
        except Exception as e:  # a template is a program, and can fail in any way
            raise TokenizerError(f"{self.path}: chat_template failed: {_said(e)}") from None


def load_chat_template(files: Path | SmallFiles) -> ChatTemplate:
    """That of `chat_template.jinja`, or else of `tokenizer_config.json`. Raises TokenizerError when there is none, or a
    broken one."""
    files = SmallFiles(files) if isinstance(files, Path) else files
    path = files.path("tokenizer_config.json")
    config: Any = {}
    named: Any = None
    try:
        with contextlib.suppress(FileNotFoundError):
            named, where = files.read(TEMPLATE_FILE).decode("utf-8"), files.path(TEMPLATE_FILE)
        config = parse_json(files.read("tokenizer_config.json"))
    except FileNotFoundError:
        if named is None:
            raise NoChatTemplateError(f"{path}: not found; {_NONE}") from None
    except (OSError, ValueError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or e
        raise TokenizerError(f"{path}: cannot read the tokenizer configuration: {why}") from None
    config = config if isinstance(config, dict) else {}
    if named is None:
        named, where = config.get("chat_template"), path
    if isinstance(named, list):
        named = {t["name"]: t.get("template") for t in named if isinstance(t, dict) and isinstance(t.get("name"), str)}
    sources = named if isinstance(named, dict) else {"default": named}
    special = {key: text for key in _SPECIAL_TOKENS if (text := _token_text(config.get(key))) is not None}
    with_tools = _load(where, sources["tool_use"], special) if "tool_use" in sources else None
    return replace(_load(where, sources.get("default"), special), with_tools=with_tools)


def _load(path: Path, source: object, special_tokens: Mapping[str, str]) -> ChatTemplate:
    from smallthinker.sandbox.environment import Sandbox  # jinja2: 30 ms that `inspect` and `--help` do without

    if not isinstance(source, str):
        if source is None:
            raise NoChatTemplateError(f"{path}: {_NONE}")
        raise TokenizerError(f"{path}: chat_template: expected a template text, found {type(source).__name__}")
    sandbox = Sandbox()
    sandbox.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        template, variables = sandbox.load(source)
    except Exception as e:  # jinja2's, and what Python's compiler raises for a program too large or too deep for it
        raise TokenizerError(f"{path}: chat_template is not a valid template: {_said(e)}") from None
    return ChatTemplate(path, source, variables, template, special_tokens, sandbox)


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A thought by the names that templates read it under."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _raise_exception(message: object) -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > _MAX_DATE_FORMAT:  # the C library may write 256 characters for each
        raise ValueError(f"strftime_now: expected at most {_MAX_DATE_FORMAT} characters")
    return datetime.now().strftime(format)


def _said(error: Exception) -> str:
    said = "it calls itself without end" if isinstance(error, RecursionError) else str(error)
    return one_line(said or type(error).__name__, _SHOWN)


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
