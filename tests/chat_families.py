"""Chat templates in the style of each family, short ones of our own, with what a model of that family writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CALL_ARGUMENTS = {"city": "Riga <&> é", "days": 2, "deep": {"er": [1, "a } b"]}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer"},
                "deep": {"type": "object"},
            },
            "required": ["city"],
        },
    },
}
_JSON = '{"city": "Riga <&> é", "days": 2, "deep": {"er": [1, "a } b"]}}'


@dataclass(frozen=True)
class Family:
    """specials: names of special tokens. opens: what the prompt ends with that has opened a part of the answer.
    thinking, calling: answers that think "Hm.\\nWell." and then say "Good day.", and that call `weather` twice; ''
    where the family has no such thing. end: the token that ends them."""

    template: str
    specials: tuple[str, ...]
    thinking: str
    calling: str
    end: str
    opens: str = ""


_CHATML = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}</tools>"
    "<tool_call>{% raw %}{}{% endraw %}</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_QWEN_CALL = f'<tool_call>\n{{"name": "weather", "arguments": {_JSON}}}\n</tool_call>'

FAMILIES = {
    "qwen3": Family(
        _CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        _CHATML_TOKENS,
        "<think>\nHm.\nWell.\n</think>\n\nGood day.",
        f"{_QWEN_CALL}\n{_QWEN_CALL}",
        "<|im_end|>",
    ),
    "opened": Family(  # the prompt has the mark already
        _CHATML + "<think>\n", _CHATML_TOKENS, "Hm.\nWell.\n</think>\n\nGood day.", "", "<|im_end|>", "<think>"
    ),
    "qwen3_coder": Family(
        _CHATML.replace("{% raw %}{}{% endraw %}", "<function=f>\n<parameter=x>\n1\n</parameter>\n</function>"),
        _CHATML_TOKENS,
        "",
        2 * (
            "<tool_call>\n<function=weather>\n<parameter=city>\nRiga <&> é\n</parameter>\n<parameter=days>\n2\n"
            '</parameter>\n<parameter=deep>\n{"er": [1, "a } b"]}\n</parameter>\n</function>\n</tool_call>\n'
        ),
        "<|im_end|>",
    ),
    "glm4_moe": Family(
        "[gMASK]<sop>{% if tools %}<|system|>\n{{ tools | tojson }}<tool_call>{name}<arg_key>{key}</arg_key>"
        "<arg_value>{value}</arg_value></tool_call>{% endif %}"
        "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}\n"
        "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
        "<arg_value>{{ v if v is string else v | tojson(ensure_ascii=False) }}</arg_value>\n{% endfor %}</tool_call>"
        "{% endfor %}{% endfor %}<|assistant|>\n{{ '<think></think>' if enable_thinking is false }}"
        "{# <|observation|> #}",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        "\n<think>Hm.\nWell.</think>\nGood day.",
        2 * (
            "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Riga <&> é</arg_value>\n<arg_key>days</arg_key>"
            '\n<arg_value>2</arg_value>\n<arg_key>deep</arg_key>\n<arg_value>{"er": [1, "a } b"]}</arg_value>\n'
            "</tool_call>"
        ),
        "<|observation|>",
    ),
    "gpt_oss": Family(
        "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
        "{% if tools %}<|start|>developer<|message|>namespace functions.{{ tools | tojson }}<|end|>{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
        "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "{% for c in m.tool_calls %}<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json"
        "<|message|>{{ c.function.arguments | tojson }}<|call|>{% endfor %}"
        "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"),
        "<|channel|>analysis<|message|>Hm.\nWell.<|end|><|start|>assistant<|channel|>final<|message|>Good day.",
        f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{_JSON}<|call|>"
        f"<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{_JSON}",
        "<|return|>",
        "<|start|>assistant",
    ),
    "llama3": Family(
        "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n"
        'Respond with {"name": function name, "parameters": its arguments}. {{ tools | tojson }}<|eot_id|>{% endif %}'
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "{% for c in m.tool_calls or [] %}"
        '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
        "{% endfor %}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        "",
        f'{{"name": "weather", "parameters": {_JSON}}}; {{"name": "weather", "parameters": {_JSON}}}',
        "<|eot_id|>",
    ),
    "llama3_tag": Family(
        '{{ tools }}<|start_header_id|>{"name": "f", "parameters": {}}',
        ("<|start_header_id|>", "<|eom_id|>", "<|python_tag|>"),
        "",
        2 * f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {_JSON}}}',
        "<|eom_id|>",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
        "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
        '{{ raise_exception("ids have 9 characters") }}{% endif %}{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}'
        "{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        "",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {_JSON}}}, {{"name": "weather", "arguments": {_JSON}}}]',
        "</s>",
    ),
    "ministral": Family(
        "{{ bos_token }}[SYSTEM_PROMPT]Draft within [THINK] and [/THINK].[/SYSTEM_PROMPT]"
        "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
        "{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        "[THINK]Hm.\nWell.[/THINK]Good day.",
        f"[TOOL_CALLS]weather[ARGS]{_JSON}[TOOL_CALLS]weather[ARGS]{_JSON}",
        "</s>",
    ),
    "gemma3": Family(
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
        ("<start_of_turn>", "<end_of_turn>"),
        "",
        f"{_QWEN_CALL}\n{_QWEN_CALL}",  # it is told of tools in words, and of this form
        "<end_of_turn>",
    ),
    "gemma4": Family(
        "{{ bos_token }}{% if tools or enable_thinking %}<|turn>system\n{{ '<|think|>\n' if enable_thinking }}"
        "{% for t in tools or [] %}<|tool>declaration:{{ t.function.name }}<tool|>{% endfor %}<turn|>\n{% endif %}"
        "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "{% for c in m.tool_calls or [] %}<|tool_call>call:{{ c.function.name }}{}<tool_call|>{% endfor %}<turn|>\n"
        "{% endfor %}<|turn>model\n{{ '' if enable_thinking else '<|channel>thought\n<channel|>' }}",
        ("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>", "<|tool_response>"),
        "<|channel>thought\nHm.\nWell.\n<channel|>Good day.",
        2 * '<|tool_call>call:weather{city:<|"|>Riga <&> é<|"|>,days:2,deep:{er:[1,<|"|>a } b<|"|>]}}<tool_call|>',
        "<turn|>",
    ),
    "phi4_mini": Family(
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and"
        " message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' +"
        " message['tools'] + '<|/tool|>' + '<|end|>' }}"
        "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "<|assistant|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>",
         "<|end|>"),
        "",
        f'<|tool_call|>[{{"name": "weather", "arguments": {_JSON}}}, {{"type": "function", "function": '
        f'{{"name": "weather", "arguments": {_JSON}}}}}]<|/tool_call|>',
        "<|end|>",
    ),
}  # fmt: skip
