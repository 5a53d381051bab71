from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallthinker.stop_strings import StopStrings


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
