"""Templates: what a row brings is text, whatever stands in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.batch.template import Template
from smallthinker.errors import RequestError


@given(st.text(), st.text())
def test_what_a_row_brings_is_put_in_as_it_is(before: str, value: str) -> None:
    literal = before.replace("{", "{{").replace("}", "}}")
    assert Template(f"{literal}{{a}}").fill({"a": value}) == before + value


def test_values_that_are_no_text_are_json() -> None:
    row = {"n": 7, "list": ["a", 1.5], "none": None, "yes": True}
    assert Template("{n} {list} {none}| {yes}").fill(row) == '7 ["a", 1.5] | true'


@pytest.mark.parametrize("text", ["{", "a}", "{a}}b", "{{{"])
def test_a_brace_without_its_other_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="a single"):
        Template(text)
