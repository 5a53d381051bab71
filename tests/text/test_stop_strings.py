from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.text.marks import Marks
from smallthinker.text.stop_strings import StopStrings


def feed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    filter_ = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filter_.push(piece)
        if filter_.stopped:
            return shown, True
    return shown + filter_.finish(), False


def test_text_ends_before_the_stop_string_even_when_it_arrives_in_pieces() -> None:
    assert feed(["one t", "wo E", "N", "D three"], ["END"]) == ("one two ", True)


def test_what_only_looks_like_a_stop_string_is_shown_later() -> None:
    filter_ = StopStrings(["###"])
    assert filter_.push("a ##") == "a "
    assert filter_.push(" b") == "## b"


SPECIALS = ["<|end|>", "<|x|>"]


def feed_tokens(tokens: list[str], stops: list[str]) -> tuple[str, bool]:
    """Texts, and special tokens by their names."""
    marks = Marks(SPECIALS, stops)
    filter_ = StopStrings(stops, marks)
    shown = ""
    for token in tokens:
        shown += filter_.push(marks.of(token)) if token in SPECIALS else filter_.push(token)
        if filter_.stopped:
            return shown, True
    return shown + filter_.finish(), False


@pytest.mark.parametrize(
    ("tokens", "stops", "expected"),
    [
        (["a", "<|end|>", "b"], ["<|end|>"], ("a", True)),
        (["a", "<|end|>", "b"], ["<|x|>"], ("ab", False)),
        (["a", "\n", "<|end|>", "b"], ["\n<|end|>"], ("a", True)),
        (["a", "<|end|>", "b", "c"], ["<|end|>bc"], ("a", True)),
        (["a", "<|end|>", "b", "d"], ["<|end|>bc"], ("abd", False)),
        (["a", "<|end|>", "<|x|>"], ["<|end|><|x|>"], ("a", True)),
        (["a <|en", "d|> b"], ["<|end|>"], ("a ", True)),  # written letter by letter
        (["a", "<|end|>", "b"], [">", "end"], ("ab", False)),  # what isn't shown has no parts
        (["a", "<|end|>", "b"], ["ab", "<|end|>x"], ("", True)),  # what is shown has no stop string either
        (["a", "<|end|>"], ["a<|x|>"], ("a", False)),
    ],
)
def test_special_tokens_end_an_answer_by_their_names_and_are_never_shown(
    tokens: list[str], stops: list[str], expected: tuple[str, bool]
) -> None:
    assert feed_tokens(tokens, stops) == expected


@given(
    st.lists(st.sampled_from(["a", "b", "ab", *SPECIALS]), max_size=12),
    st.lists(st.lists(st.sampled_from(["a", "b", *SPECIALS]), min_size=1, max_size=3).map("".join), max_size=3),
)
def test_what_is_shown_has_no_stop_string_and_no_special_token(tokens: list[str], stops: list[str]) -> None:
    shown, stopped = feed_tokens(tokens, stops)
    visible = "".join(token for token in tokens if token not in SPECIALS)
    assert visible.startswith(shown)
    assert stopped or shown == visible
    assert not any(stop in shown for stop in stops)
    assert stopped or not any(stop in tokens for stop in stops if stop in SPECIALS)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_any_splitting_equals_a_search_in_the_whole_text(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, stopped = feed(pieces, stops)
    # the stop string that is complete first ends the text; where several end together, the one that starts first
    ends = [(at + len(s), at) for s in stops if (at := text.find(s)) >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert all(s not in shown for s in stops)
        assert any(text.startswith(s, len(shown)) for s in stops)
