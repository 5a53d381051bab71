"""Each family's way to think, to call functions and to end a turn, read by the one state machine, however it is cut."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from chat_families import CALL_ARGUMENTS, FAMILIES, WEATHER, Family
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.text.answer_parser import CallArguments, CallStart, Reasoning, Said
from smallthinker.text.answer_reader import AnswerReader
from smallthinker.text.chat_formats import chat_format
from smallthinker.text.chat_prompt import AnswerFormat

SCHEMAS = {"weather": WEATHER["function"]["parameters"]}
Read = tuple[str, str, list[tuple[str, Any]]]


def tokens_of(family: Family, text: str) -> list[str]:
    """Special tokens, and characters."""
    names = sorted(family.specials, key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, names), "."]), text, re.DOTALL)


def read(
    family: Family, tokens: list[str], *, tools: bool = True, specials: bool = True, stops: tuple[str, ...] = ()
) -> Read:
    """Thought, what is said, and calls with their arguments. tokens: texts, and names of special tokens."""
    format = AnswerFormat(chat_format(family.template), SCHEMAS if tools else None, family.opens)
    reader = AnswerReader(family.specials if specials else (), stops, format)
    parts = []
    for token in tokens:
        is_special = specials and token in family.specials
        parts += reader.push("", token) if is_special else reader.push(token)
        if reader.stopped:
            break
    parts += [] if reader.stopped else reader.finish()
    assert reader.text == "".join(part.text for part in parts if isinstance(part, Said))
    assert reader.reasoning == "".join(part.text for part in parts if isinstance(part, Reasoning))
    starts = [part for part in parts if isinstance(part, CallStart)]
    arguments = [part for part in parts if isinstance(part, CallArguments)]
    assert [start.index for start in starts] == [one.index for one in arguments] == list(range(len(starts)))
    return reader.reasoning, reader.text, [(s.name, json.loads(a.text)) for s, a in zip(starts, arguments, strict=True)]


def families(what: str) -> Any:
    return pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if getattr(family, what)])


@families("thinking")
@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize("tools", [True, False])
def test_a_thought_is_apart_from_what_is_said(name: str, specials: bool, tools: bool) -> None:
    family = FAMILIES[name]
    tokens = tokens_of(family, family.thinking)
    for ended in (tokens, [*tokens, family.end] if specials else tokens):
        assert read(family, ended, tools=tools, specials=specials) == ("Hm.\nWell.", "Good day.", [])


@families("calling")
@pytest.mark.parametrize("specials", [True, False])
def test_calls_come_out_with_their_arguments(name: str, specials: bool) -> None:
    family = FAMILIES[name]
    calls = [("weather", CALL_ARGUMENTS)] * 2
    assert read(family, tokens_of(family, family.calling), specials=specials) == ("", "", calls)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.thinking and family.calling])
def test_a_thought_may_come_before_a_call(name: str) -> None:
    family = FAMILIES[name]
    thought = family.thinking.removesuffix("Good day.").removesuffix("<|channel|>final<|message|>")
    called = family.calling if name != "gpt_oss" else family.calling.removeprefix("<|start|>assistant")
    thought, said, calls = read(family, tokens_of(family, thought + called))
    assert (thought, said, len(calls)) == ("Hm.\nWell.", "", 2)


@families("calling")
def test_a_call_of_a_function_that_is_not_there_is_text(name: str) -> None:
    family = FAMILIES[name]
    tokens = tokens_of(family, family.calling.replace("weather", "whether"))
    thought, said, calls = read(family, tokens)
    assert thought == "" and calls == [] and "whether" in said


@pytest.mark.parametrize("name", FAMILIES)
def test_text_without_marks_comes_back_as_it_is(name: str) -> None:
    family = FAMILIES[name]
    lead = "<|channel|>final<|message|>" if name == "gpt_oss" else "</think>" if name == "opened" else ""
    said = "Good <b>day</b>: {1} [2] <|x|>\n\n a"
    assert read(family, tokens_of(family, lead + said)) == ("", said, [])


def test_letters_of_a_special_token_are_no_mark() -> None:
    family = FAMILIES["gpt_oss"]
    said = "It writes <|channel|>analysis<|message|>, and <|end|>."
    tokens = [*tokens_of(family, "<|channel|>final<|message|>"), *said]
    assert read(family, tokens) == ("", said, [])


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "gemma4", "ministral"])
def test_a_stop_string_counts_in_what_is_said_alone(name: str) -> None:
    family = FAMILIES[name]
    tokens = tokens_of(family, family.thinking)
    assert read(family, tokens, stops=("Well", "final", "thought", "day")) == ("Hm.\nWell.", "Good ", [])
    assert (
        read(family, tokens_of(family, family.calling), stops=("Riga", "weather"))[2]
        == [("weather", CALL_ARGUMENTS)] * 2
    )


def test_an_answer_that_is_cut_in_a_header_has_said_nothing() -> None:
    family = FAMILIES["gpt_oss"]
    for cut in ([], ["<|channel|>"], ["<|channel|>", "ana"]):
        assert read(family, cut) == ("", "", [])


def test_values_of_tagged_arguments_are_what_the_schema_says() -> None:
    family = FAMILIES["glm4_moe"]
    types = {"s": "string", "n": ["integer", "null"], "b": "boolean"}
    schema = {"properties": {name: {"type": type} for name, type in types.items()}}
    reader = AnswerReader((), (), AnswerFormat(chat_format(family.template), {"f": schema}))
    arguments = {"s": "12", "n": "null", "b": "True", "any": "[1]", "text": "a < b"}
    pairs = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items())
    reader.push(f"<tool_call>f\n{pairs}</tool_call>")
    [(_, found)] = reader.calls
    assert json.loads(found.text) == {"s": "12", "n": None, "b": True, "any": [1], "text": "a < b"}


PIECES = ["a", " ", "\n", "{", "}", "weather", '"', "Good day.", "</tool_call>", "</think>", ";"]


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_where_the_text_is_cut_changes_nothing(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    pieces = st.sampled_from([*PIECES, *family.specials, family.thinking, family.calling, family.calling[:40]])
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    specials = data.draw(st.booleans())
    tokens = tokens_of(family, text) if specials else [*text]
    joined: list[str] = []  # runs of letters, cut anywhere
    for is_special, run in itertools.groupby(tokens, lambda token: specials and token in family.specials):
        if is_special:
            joined += run
            continue
        letters = "".join(run)
        cuts = sorted(data.draw(st.sets(st.integers(0, len(letters)), max_size=4)))
        joined += [letters[a:b] for a, b in itertools.pairwise([0, *cuts, len(letters)])]
    assert read(family, joined, specials=specials) == read(family, tokens, specials=specials)
