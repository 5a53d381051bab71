"""Answers taken apart: thoughts, text and calls, however the text is cut into pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.text.answer_parser import AnswerParser, CallArguments, CallStart, Part, Reasoning, Said
from smallthinker.text.chat_formats import chat_format

TOOLS: dict[str, dict[str, Any]] = {"look": {}, "ask": {}}
QWEN = chat_format("<think><tool_call>")


def parsed(pieces: list[str], *, thinks: bool = True, thinking: bool = False) -> tuple[str, str, list[tuple[str, str]]]:
    """Thought, text, and calls with their arguments."""
    format = QWEN if thinks else QWEN.without_thoughts()
    parser = AnswerParser(format, tools=TOOLS, opened="<think>" if thinking else "")
    parts: list[Part] = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallStart):
            assert part.index == len(calls)
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            name, text = calls[part.index]
            calls[part.index] = name, text + part.text
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return thought, "".join(part.text for part in parts if isinstance(part, Said)), calls


LOOK = '<tool_call>\n{"name": "look", "arguments": {"at": "a \\"}\\" b", "deep": {"er": [1, {}]}}}\n</tool_call>'
LOOKED = ("look", '{"at": "a \\"}\\" b", "deep": {"er": [1, {}]}}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", ("", "Hello.", [])),
        ("  <b> is bold", ("", "  <b> is bold", [])),
        ("<think>\nWell.\n</think>\n\nHello.", ("Well.", "Hello.", [])),
        ("<think>\n\n</think>\n\nHello.", ("", "Hello.", [])),
        ("<think>never done", ("never done", "", [])),
        ("Hello <think> no thought </think>", ("", "Hello <think> no thought </think>", [])),
        ("<thin", ("", "<thin", [])),
        (LOOK, ("", "", [LOOKED])),
        (f"<think>Hm</think>\nI look.\n{LOOK}\n{LOOK}", ("Hm", "I look.", [LOOKED, LOOKED])),
        (f"{LOOK} And more.", ("", "And more.", [LOOKED])),
        ('<tool_call>{"arguments": {"x": 1}, "name": "ask"}</tool_call>', ("", "", [("ask", '{"x": 1}')])),
        ('<tool_call>{"name": "ask"}</tool_call>', ("", "", [("ask", "{}")])),
        ('<tool_call>{"name": "ask", "arguments": {"x": 1}}', ("", "", [("ask", '{"x": 1}')])),
        ('<tool_call>{"name": "ask", "arguments": {"x"', ("", '<tool_call>{"name": "ask", "arguments": {"x"', [])),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>',
         ("", '<tool_call>{"name": "other", "arguments": {}}</tool_call>', [])),
        ("<tool_call>nonsense</tool_call>!", ("", "<tool_call>nonsense</tool_call>!", [])),
        ("<tool_call>" + "[" * 5000 + "</tool_call>", ("", "<tool_call>" + "[" * 5000 + "</tool_call>", [])),
        ("a <tool_cal", ("", "a <tool_cal", [])),
    ],
)  # fmt: skip
def test_an_answer_is_taken_apart_the_same_way_however_it_is_cut(
    text: str, expected: tuple[str, str, list[tuple[str, str]]]
) -> None:
    assert parsed([text]) == expected
    assert parsed(list(text)) == expected


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", LOOK, "<", "{", "\n", "a b"])),
    st.lists(st.integers(0, 200)),
    st.booleans(),
)
def test_where_the_text_is_cut_changes_nothing(parts: list[str], cuts: list[int], thinking: bool) -> None:
    text = "".join(parts)
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(at)]
    assert parsed(pieces, thinking=thinking) == parsed([text], thinking=thinking)


@given(st.text(alphabet="abc <>/\n{}"))
def test_text_without_marks_comes_back_as_it_is(text: str) -> None:
    thought, said, calls = parsed(list(text))
    assert (thought, said, calls) == ("", text, [])


def test_a_prompt_that_opens_the_thought_leaves_only_its_end_to_the_answer() -> None:
    assert parsed(list("So.\n</think>\n\nYes."), thinking=True) == ("So.", "Yes.", [])


def test_without_tools_nothing_is_taken_for_a_call() -> None:
    parser = AnswerParser(QWEN.without_thoughts())
    assert parser.push(LOOK) == [Said(LOOK)]


def block(*objects: str) -> str:
    return f"<tool_call>{''.join(objects)}</tool_call>"


ASKED = [("ask", '{"x": 1}')]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (block('{"name": "ask", "parameters": {"x": 1}}'), ASKED),
        (block('{"parameters": {"x": 1}, "name": "ask"}'), ASKED),
        (block('{"name": "ask", "arguments": null, "parameters": {"x": 1}}'), ASKED),
        (block('{"name": "ask", "arguments": "{\\"x\\": 1}"}'), ASKED),
        (block('{"name": "ask", "arguments": ""}'), [("ask", "{}")]),
        (block('{"name": "ask", "arguments": " "}'), [("ask", "{}")]),
        (block('{"name": "ask", "arguments": null}'), [("ask", "{}")]),
        (block('{"arguments": {"x": "</tool_call>"}, "name": "ask"}'), [("ask", '{"x": "</tool_call>"}')]),
        (block('{"name": "ask", "arguments": {"x": "<tool_call>"}}'), [("ask", '{"x": "<tool_call>"}')]),
        (block('{"name": "ask", "arguments": {"x": "\\ud800"}}'), [("ask", '{"x": "\\ud800"}')]),
        (block('{"name": "ask", "arguments": {"x": 1}}') * 2, ASKED * 2),
        (block('{"name": "ask", "arguments": {"x": 1}}' * 2), ASKED * 2),
        (block('{"name": "ask", "arguments": {"x": 1}}\n' * 2), ASKED * 2),
        (block('[{"name": "ask", "arguments": {"x": 1}}, {"name": "ask", "parameters": {"x": 1}}]'), ASKED * 2),
        ('<tool_call>{"name": "ask", "arguments": {"x": 1}}\n' * 2, ASKED * 2),
        ('<tool_call>{"name": "ask", "arguments": {"x": 1}}</tool_c', ASKED),
    ],
)
def test_a_call_comes_in_many_forms_and_is_one_object(text: str, calls: list[tuple[str, str]]) -> None:
    assert parsed([text]) == parsed(list(text)) == ("", "", calls)


@pytest.mark.parametrize(
    "text",
    [
        block('{"name": "ask", "arguments": [1]}'),
        block('{"name": "ask", "arguments": "Riga"}'),
        block('{"name": "ask", "arguments": "[1]"}'),
        block('{"name": "ask", "arguments": 7}'),
        block('{"name": "ask", "arguments": true}'),
        block('{"name": "ask", "arguments": {"x": NaN}}'),
        block('{"name": "ask", "arguments": {"x": 1, "x": 2}}'),
        block('{"name": "", "arguments": {}}'),
        block('{"name": ["ask"], "arguments": {}}'),
        block('{"arguments": {}}'),
        block("{'name': 'ask'}"),
        block("[]"),
        block('[{"name": "ask"}, {"name": "other"}]'),
        block('"ask"'),
        block('{"name": "ask", "arguments": {"x": "y}}'),
        block('{"name": "ask", "arguments": {"x": ' + "[" * 5000 + "]" * 5000 + "}}"),
    ],
)
def test_what_is_no_call_of_an_object_is_text_as_it_was_written(text: str) -> None:
    text = f" a {text} b \n"
    assert parsed([text]) == parsed(list(text)) == ("", text, [])


def test_a_call_after_one_that_is_none_is_still_found() -> None:
    broken = '<tool_call>{"name": "ask", "arguments": {"x": "y}}</tool_call>\n'
    thought, said, calls = parsed(list(f"{broken}{LOOK} c"))
    assert thought == "" and said.startswith(broken.strip()) and said.endswith(" c") and calls == [LOOKED]


def test_text_on_both_sides_of_calls_keeps_the_space_between() -> None:
    assert parsed(list(f"I look. {LOOK} And  ask.\n{LOOK}\n")) == ("", "I look.  And  ask.", [LOOKED, LOOKED])
    assert parsed(list(f"\n{LOOK}\n\nDone. ")) == ("", "Done. ", [LOOKED])


NAMES = st.sampled_from(["look", "ask", "other", "", 7, None])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["</tool_call>", '{"x": 1}']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.one_of(
    st.fixed_dictionaries({}, optional={"name": NAMES, "arguments": VALUES, "parameters": VALUES}),
    st.fixed_dictionaries({}, optional={"arguments": VALUES, "name": NAMES}),
    VALUES,
).map(json.dumps)
PIECES = st.one_of(
    st.sampled_from(["<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"', "a b", LOOK, ",", "[", "]"]),
    OBJECTS,
    OBJECTS.map(block),
)


@given(st.lists(PIECES, max_size=6).map("".join), st.lists(st.integers(0, 400), max_size=8))
def test_an_answer_is_text_and_whole_calls_and_nothing_between(text: str, cuts: list[int]) -> None:
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    thought, said, calls = parsed([text[a:b] for a, b in itertools.pairwise(at)], thinks=False)
    assert (thought, said, calls) == parsed([text], thinks=False)
    for name, arguments in calls:
        assert name in TOOLS and isinstance(json.loads(arguments), dict)
        arguments.encode("utf-8")
    if not calls:
        assert said == text
