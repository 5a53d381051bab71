"""From messages to the text of a prompt: the chat template of a model, in a sandbox, since it comes from a file.

Knows nothing about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from smallthinker.errors import TokenizerError

_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class ChatTemplate:
    """What turns messages into a prompt. `variables`: the names that it asks for beside the messages, such as `tools`
    or `enable_thinking`; what it doesn't ask for would be ignored."""

    path: Path
    source: str
    variables: frozenset[str]
    template: Any
    special_tokens: Mapping[str, str]

    def render(self, messages: Iterable[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt, ready for the assistant's answer. Raises TokenizerError."""
        from jinja2 import TemplateError

        known = {**self.special_tokens, **variables, "messages": list(messages), "add_generation_prompt": True}
        try:
            text: str = self.template.render(known)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as e:  # the template's own mistakes
            raise TokenizerError(f"{self.path}: chat_template failed: {e}") from None
        return text


def load_chat_template(folder: Path) -> ChatTemplate:
    """That of `tokenizer_config.json`. Raises TokenizerError when there is none, or a broken one."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"{path}: not found; chat needs the model's chat_template") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise TokenizerError(f"{path}: cannot read the tokenizer configuration: {e}") from None
    source = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(source, list):  # several named templates: the one named default
        source = next((t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default"), None)
    if not isinstance(source, str) or len(source) > _MAX_TEMPLATE_BYTES:
        raise TokenizerError(f"{path}: chat_template: expected a template text, found {type(source).__name__}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        template = environment.from_string(source)
        variables = meta.find_undeclared_variables(environment.parse(source))
    except TemplateError as e:
        raise TokenizerError(f"{path}: chat_template is not a valid template: {e}") from None
    special = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return ChatTemplate(path, source, frozenset(variables), template, special)


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
