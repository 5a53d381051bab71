"""An answer's words end at the terminal's edge, and nothing of the text is lost on the way."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.chat.wrapping import Wrapping, cells, fitted


def wrapped(pieces: list[str], width: int) -> str:
    wrapping = Wrapping(lambda: width)
    return "".join(map(wrapping.push, pieces)) + wrapping.end()


@given(st.lists(st.text(alphabet="ab 世\t\n`|é", max_size=12), max_size=12), st.integers(4, 12))
def test_only_a_space_is_ever_changed_and_wherever_the_text_is_cut(pieces: list[str], width: int) -> None:
    out, text = wrapped(pieces, width), "".join(pieces)
    assert out == wrapped([text], width)
    assert "".join(out.split()) == "".join(text.split())
    assert out.count("\n") >= text.count("\n")


def test_words_go_to_the_next_line_where_they_would_cross_the_edge() -> None:
    assert wrapped(["The quick bro", "wn fox jumps"], 10) == "The quick\nbrown fox\njumps"
    assert wrapped(["世界 世界 世界"], 9) == "世界 世界\n世界"  # two columns each
    assert cells("世界") == 4
    assert wrapped(["a" * 30, " b"], 10) == f"{'a' * 30}\nb"  # a word that no line holds is the terminal's to cut


def test_code_and_tables_stay_as_they_are() -> None:
    code = "```\nlong line of code here\n```\n"
    assert wrapped([code], 10) == code
    assert wrapped([code, "then words again"], 10) == code + "then words\nagain"
    assert wrapped(["| a long row of | a table |\n"], 10) == "| a long row of | a table |\n"


def test_a_word_is_shown_once_it_is_known_where_it_ends_and_code_at_once() -> None:
    wrapping = Wrapping(lambda: 20)
    assert wrapping.push("Hel") == ""
    assert wrapping.push("lo wor") == "Hello"
    assert wrapping.push("ld.\n```\nco") == " world.\n```\nco"


def test_the_program_s_own_lines_are_wrapped_at_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "12")
    assert fitted("/help this list\n/bye", Screen()) == "/help this\nlist\n/bye"
    assert fitted("/help this list\n/bye", io.StringIO()) == "/help this list\n/bye"
