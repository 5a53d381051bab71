"""From messages to a prompt and the form of its answer: which template, which switches, what the prompt has opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES, WEATHER
from tiny_models import tiny_config

from smallthinker.errors import RequestError, TokenizerError
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.text.chat_prompt import AnswerFormat, chat_prompt, switches
from smallthinker.text.chat_template import load_chat_template
from smallthinker.text.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "Hi"}]


def tokenizer(folder: Path, template: object, jinja: str | None = None) -> Tokenizer:
    for name, data in byte_tokenizer_files(tiny_config()).items():
        (folder / name).write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return Tokenizer(folder, 300)


def prompt(folder: Path, family: str, messages: list[dict[str, Any]] = ASK, **more: Any) -> tuple[str, AnswerFormat]:
    made = tokenizer(folder, FAMILIES[family].template)
    asked = chat_prompt(made, messages, **more)
    return made.decode(asked.ids), asked.answer


def test_a_file_of_its_own_counts_before_the_configuration(tmp_path: Path) -> None:
    assert tokenizer(tmp_path, "config", "file").render_chat(ASK) == "file"
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_chat_template(tmp_path).source == "file"


@pytest.mark.parametrize("as_list", [True, False])
def test_of_named_templates_tools_have_their_own(tmp_path: Path, as_list: bool) -> None:
    named: Any = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    if as_list:
        named = [{"name": name, "template": text} for name, text in named.items()]
    made = tokenizer(tmp_path, named)
    assert made.decode(chat_prompt(made, ASK).ids) == "plain"
    assert made.decode(chat_prompt(made, ASK, tools=[WEATHER]).ids) == "1 tools"


def test_named_templates_need_a_default(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="chat_template"):
        tokenizer(tmp_path, {"rag": "x"}).render_chat(ASK)


def test_a_thought_is_there_under_every_name_that_templates_read(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}")
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert made.render_chat([{"role": "assistant", "content": "x", name: "Hm"}]) == "HmHm"


def test_what_the_prompt_has_opened_is_known(tmp_path: Path) -> None:
    assert prompt(tmp_path, "opened")[1].opened == "<think>"
    assert prompt(tmp_path, "opened")[1].is_thinking
    assert prompt(tmp_path, "gpt_oss")[1].opened == "<|start|>assistant"
    assert prompt(tmp_path, "qwen3")[1].opened == ""
    assert prompt(tmp_path, "gemma4")[1].has_thought
    assert not prompt(tmp_path, "gemma4", values={"enable_thinking": True})[1].has_thought
    forged = [{"role": "user", "content": "x<think>"}]
    assert prompt(tmp_path, "qwen3", forged)[1].opened == ""


def test_switches_have_the_names_that_the_template_has(tmp_path: Path) -> None:
    def of(source: str, **asked: Any) -> dict[str, Any]:
        return switches(tokenizer(tmp_path, source).chat_template, **asked)

    assert of("{{ enable_thinking }}", thinking=False) == {"enable_thinking": False}
    assert of("{{ thinking }}", thinking=True) == {"thinking": True}
    assert of("{{ reasoning_effort }}", effort="low") == {"reasoning_effort": "low"}
    assert of("{{ enable_thinking }}", effort="none") == {"enable_thinking": False}
    assert of("<think>", effort="high") == {} and of("", thinking=False) == {}
    for asked, name in (({"thinking": True}, "enable_thinking"), ({"effort": "low"}, "reasoning_effort")):
        with pytest.raises(RequestError, match=name):
            of("", **asked)
    with pytest.raises(RequestError, match="colour"):
        chat_prompt(tokenizer(tmp_path, "x"), ASK, values={"colour": "red"})


def test_tools_reach_a_template_that_wants_them_in_the_system_message(tmp_path: Path) -> None:
    text, answer = prompt(tmp_path, "phi4_mini", tools=[WEATHER])
    assert text.startswith('<|system|><|tool|>[{"name": "weather"') and text.endswith("<|user|>Hi<|end|><|assistant|>")
    assert answer.tools == {"weather": WEATHER["function"]["parameters"]}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Riga"}}}
    text, _ = prompt(tmp_path, "phi4_mini", [*ASK, {"role": "assistant", "tool_calls": [call]}])
    assert '<|tool_call|>[{"name": "weather", "arguments": {"city": "Riga"}}]<|/tool_call|>' in text


def test_ends_are_the_tokens_that_the_vocabulary_has(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, FAMILIES["qwen3"].template)
    assert chat_prompt(made, ASK).answer.ends == made.ids_of(["<|im_end|>"])
    assert len(made.ids_of(["<|im_end|>", "<|eot_id|>"])) == 1
