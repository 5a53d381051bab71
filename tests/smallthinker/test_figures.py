"""Figures for people keep their digits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.figures import rounded


@given(st.floats(1e-9, 1e14), st.integers(1, 5))
def test_a_figure_says_what_it_is_to_its_digits_and_has_no_exponent(value: float, digits: int) -> None:
    text = rounded(value, digits)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.5001 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.04, "0.04"),
        (0.0421678, "0.0422"),
        (1, "1"),
        (20.94, "20.9"),
        (99.96, "100"),
        (12345.6, "12,300"),
    ],
)
def test_figures_as_they_are_written(value: float, text: str) -> None:
    assert rounded(value) == text
