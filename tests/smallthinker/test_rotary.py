"""Angles of rotary positions, against the reference that training uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_config

from smallthinker import reference
from smallthinker.errors import ConfigError
from smallthinker.models import description as d
from smallthinker.rotary import RotaryTable, frequencies, uses_long_factors


@st.composite
def ropes(draw: st.DrawFn) -> d.Rope:
    size, original = 2 * draw(st.integers(1, 40)), draw(st.integers(1, 9000))
    factors = st.lists(st.floats(0.5, 50), min_size=size // 2, max_size=size // 2).map(tuple)
    factor, times = draw(st.floats(1, 60)), draw(st.floats(0.5, 2))
    scalings: list[Any] = [
        None,
        d.LinearScaling(factor),
        d.Llama3Scaling(factor, 1.0, draw(st.floats(1.5, 8)), original),
        d.YarnScaling(factor, original, times, truncate=draw(st.booleans())),
        d.LongRopeScaling(draw(factors), draw(factors), original, times),
    ]
    over = draw(st.none() | st.integers(size, 200))
    return d.Rope(draw(st.floats(2, 1e7)), size, over=over, scaling=draw(st.sampled_from(scalings)))


@given(rope=ropes(), context=st.integers(1, 20000))
def test_frequencies_are_those_of_the_reference(rope: d.Rope, context: int) -> None:
    expected, expected_factor = reference.frequencies(rope, context)
    found, factor = frequencies(rope, context)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-12, atol=0)
    assert factor == expected_factor


def model_with(*of_layers: d.Rope | None) -> d.Model:
    model = tiny_config()
    layers = [
        replace(layer, mixer=replace(layer.attention, rope=rope))
        for layer, rope in zip(model.layers, of_layers, strict=True)
    ]
    return replace(model, layers=tuple(layers))


def test_distinct_ropes_lie_side_by_side_and_equal_ones_are_computed_once() -> None:
    local, whole = d.Rope(1e4, 16), d.Rope(1e6, 8, scaling=d.LinearScaling(8.0))
    table = RotaryTable(model_with(local, whole, local), 512)
    assert table.first_pair == {local: 0, whole: 8}
    positions = np.array([0, 3, 500])
    cos, sin = table.angles(positions)
    expected = positions[:, None] * np.array(frequencies(local, 512)[0] + frequencies(whole, 512)[0])
    np.testing.assert_allclose(cos, np.cos(expected), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(expected), rtol=0, atol=1e-7)
    assert [part.shape for part in RotaryTable(model_with(None, None, None), 512).angles(positions)] == [(3, 0)] * 2


def test_long_factors_are_chosen_once_by_the_planned_context() -> None:
    rope = d.Rope(1e4, 4, scaling=d.LongRopeScaling((1.0, 1.0), (2.0, 4.0), 100, 1.0))
    model = model_with(None, rope, None)
    plain = frequencies(d.Rope(1e4, 4), 100)[0]
    assert frequencies(rope, 100)[0] == plain and not uses_long_factors(model, 100)
    assert frequencies(rope, 101)[0] == [plain[0] / 2, plain[1] / 4] and uses_long_factors(model, 101)
    assert not uses_long_factors(tiny_config(), 512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": 0.5}, "rope theta: expected more than 1, found 0.5"),
        ({"size": 0}, "rotary dimensions: expected at least 1, found 0"),
        ({"scaling": d.LinearScaling(0.0)}, "rope scaling factor: expected more than 0, found 0"),
        (
            {"scaling": d.Llama3Scaling(8.0, 4.0, 4.0, 64)},
            "rope scaling high_freq_factor: expected more than 4, found 4",
        ),
        ({"scaling": d.YarnScaling(4.0, 0, 1.0)}, "rope scaling original_context: expected at least 1, found 0"),
        ({"scaling": d.YarnScaling(4.0, 64, 1.0, beta_slow=0.0)}, "rope scaling beta_slow: expected more than 0"),
        (
            {"scaling": d.LongRopeScaling((1.0,), (1.0,) * 8, 64, 1.0)},
            "rope scaling: expected 8 short factors, found 1",
        ),
        ({"scaling": d.LongRopeScaling((1.0,) * 8, (0.0,) * 8, 64, 1.0)}, "rope scaling long factors: expected more"),
    ],
)
def test_what_no_angle_can_be_computed_from_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_with(None, replace(d.Rope(1e4, 16), **changes), None)
