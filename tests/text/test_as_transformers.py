"""Chat templates rendered here and by transformers: the same bytes. Published ones are compared by hand:

python tests/text/test_as_transformers.py FILE.jinja ...
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script
from chat_families import FAMILIES, WEATHER

from smallthinker.errors import TokenizerError
from smallthinker.text.chat_template import ChatTemplate, load_chat_template
from smallthinker.text.messages import plain_messages

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
USER = {"role": "user", "content": "Hi <&>\n thére "}
CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Riga <&> é", "days": 2}},
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": "Rain."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SAID = {"role": "assistant", "content": "Well."}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, Any]]] = {
    "plain": ([USER], None, {}),
    "system": ([{"role": "system", "content": "Be brief."}, USER, SAID, USER], None, {}),
    "thought": ([USER, SAID | {"reasoning_content": "Hm."}, USER], None, {}),
    "not thinking": ([USER], None, {"enable_thinking": False}),
    "thinking": ([USER], None, {"enable_thinking": True}),
    "tools": ([USER], [WEATHER], {}),
    "calls": ([USER, CALLING, RESULT], [WEATHER], {}),
    "thought and calls": ([USER, CALLING | {"reasoning_content": "Hm."}, RESULT, SAID, USER], [WEATHER], {}),
}


def theirs(source: str, name: str) -> str:
    from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

    messages, tools, values = CONVERSATIONS[name]
    rendered, _ = render_jinja_template(
        [_normalize_chat_messages(messages)],
        tools=tools,
        chat_template=source,
        add_generation_prompt=True,
        **SPECIALS,
        **values,
    )
    text: str = rendered[0]
    return text


def ours(template: ChatTemplate, name: str) -> str:
    messages, tools, values = CONVERSATIONS[name]
    return template.render(plain_messages(messages), values | ({"tools": tools} if tools else {}))


def load(folder: Path, source: str) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **SPECIALS}))
    return load_chat_template(folder)


def differences(folder: Path, source: str) -> Iterator[str]:
    template = load(folder, source)
    for name in CONVERSATIONS:
        try:
            expected = theirs(source, name)
        except Exception as e:
            yield f"{name}: transformers: {e}"
            continue
        try:
            found = ours(template, name)
        except TokenizerError as e:
            yield f"{name}: {e}"
            continue
        if found != expected:
            yield f"{name}: {found!r} is not {expected!r}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_renders_as_in_transformers(tmp_path: Path, family: str) -> None:
    assert list(differences(tmp_path, FAMILIES[family].template)) == []


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as temporary:
            found = list(differences(Path(temporary), file.read_text(encoding="utf-8")))
        print(f"{file.name}: {len(CONVERSATIONS) - len(found)} of {len(CONVERSATIONS)} the same")
        print(*(f"    {line[:300]}" for line in found), sep="\n", end="\n" if found else "")
