"""Answers taken apart: thoughts, text and calls, however the text is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.server.output import CallArguments, CallStart, OutputParser, Part, Reasoning, Said

TOOLS = frozenset({"look", "ask"})


def parsed(pieces: list[str], *, thinks: bool = True, thinking: bool = False) -> tuple[str, str, list[tuple[str, str]]]:
    """Thought, text, and calls with their arguments."""
    parser = OutputParser(thinks=thinks, thinking=thinking, tools=TOOLS)
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
        ('<tool_call>{"name": "ask", "arguments": {"x": 1', ("", "", [("ask", '{"x": 1')])),
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
    pieces = [text[a:b] for a, b in zip(at, at[1:], strict=False)]
    assert parsed(pieces, thinking=thinking) == parsed([text], thinking=thinking)


@given(st.text(alphabet="abc <>/\n{}"))
def test_text_without_marks_comes_back_as_it_is(text: str) -> None:
    thought, said, calls = parsed(list(text))
    assert (thought, said, calls) == ("", text, [])


def test_a_prompt_that_opens_the_thought_leaves_only_its_end_to_the_answer() -> None:
    assert parsed(list("So.\n</think>\n\nYes."), thinking=True) == ("So.", "Yes.", [])


def test_arguments_are_handed_on_before_the_call_is_complete() -> None:
    parser = OutputParser(tools=TOOLS)
    parts = parser.push('<tool_call>{"name": "ask", "arguments": {"question": "wh')
    assert isinstance(parts[0], CallStart) and parts[1] == CallArguments(0, '{"question": "wh')
    assert parser.push('o"}') == [CallArguments(0, 'o"}')]


def test_without_tools_nothing_is_taken_for_a_call() -> None:
    parser = OutputParser()
    assert parser.push(LOOK) == [Said(LOOK)]


def test_arguments_are_json_even_when_the_model_gave_them_otherwise() -> None:
    _, _, calls = parsed(['<tool_call>{"name": "ask", "arguments": "{\\"x\\": 1}"}</tool_call>'])
    assert json.loads(calls[0][1]) == {"x": 1}
