"""Prompt lookup finds the longest earlier match of a text's end, whatever pieces the text came in."""

from __future__ import annotations

from itertools import chain

from hypothesis import example, given
from hypothesis import strategies as st

from smallthinker.generation.speculation.prompt_lookup import FEWEST, LONGEST, PromptLookup

texts = st.lists(st.integers(0, 3), max_size=60) | st.lists(st.integers(0, 1 << 18), max_size=60)


def lookup_of(text: list[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.extend(text)
    return lookup


def longest(text: list[int]) -> int:
    """By comparing everything with everything."""
    end, best = len(text) - 1, 0
    for at in range(end):
        length = 0
        while length < LONGEST and length <= at and text[at - length] == text[end - length]:
            length += 1
        best = max(best, length)
    return best if best >= FEWEST else 0


@given(texts)
@example([5] * 60)
def test_what_is_found_is_an_earlier_match_and_in_texts_of_few_repeats_the_longest(text: list[int]) -> None:
    length, at = lookup_of(text).match()
    if not length:
        assert longest(text) == 0
        return
    assert 0 <= at < len(text) - 1 and text[at - length + 1 : at + 1] == text[len(text) - length :]
    pair = text[-2:]
    if sum(text[i : i + 2] == pair for i in range(len(text) - 1)) <= 16:
        assert length == longest(text)


@given(st.lists(texts, max_size=6))
def test_a_text_in_pieces_is_the_same_text(pieces: list[list[int]]) -> None:
    lookup = PromptLookup()
    for piece in pieces:
        lookup.extend(piece)
        lookup.match()
    assert lookup.match() == lookup_of(list(chain.from_iterable(pieces))).match()


def test_a_text_longer_than_the_table_is_indexed_again() -> None:
    text = [*range(5000), 17, 18, 19]
    lookup = lookup_of(text)
    assert lookup.match() == (3, 19) and lookup.following(19, 3) == [20, 21, 22]


def test_the_later_of_two_equal_matches_is_taken() -> None:
    lookup = lookup_of([1, 2, 3, 9, 1, 2, 4, 9, 7, 1, 2])
    assert lookup.match() == (2, 5) and lookup.following(5, 2) == [4, 9]


def test_a_loop_goes_on_as_it_began() -> None:
    lookup = lookup_of([8, 1, 2, 3, 1, 2, 3])
    assert lookup.match() == (3, 3)
    assert lookup.following(3, 7) == [1, 2, 3, 1, 2, 3, 1]
