from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.errors import RequestError
from smallthinker.generation.sampling import Sampler
from smallthinker.generation.sampling_params import SamplingParams

LOGITS = np.array([0.0, 3.0, 1.0, 2.0, -1.0], np.float32)
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def drawn(logits: np.ndarray, count: int = 400, **params: object) -> set[int]:
    sampler = Sampler(SamplingParams(**{**OFF, "temperature": 1.0, "seed": 0, **params}), [])  # type: ignore[arg-type]
    return {sampler.sample(logits) for _ in range(count)}


def test_temperature_zero_is_greedy_and_ties_go_to_the_lower_id() -> None:
    assert Sampler(SamplingParams(temperature=0), []).sample(LOGITS) == 1
    assert Sampler(SamplingParams(temperature=0), []).sample(np.ones(4, np.float32)) == 0


def test_top_k_keeps_the_k_likeliest() -> None:
    assert drawn(LOGITS, top_k=2) == {1, 3}
    assert drawn(LOGITS, top_k=1) == {1}


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()  # 0.64, 0.24, 0.09, ...
    assert drawn(LOGITS, top_p=float(p[1]) - 0.01) == {1}
    assert drawn(LOGITS, top_p=float(p[1]) + 0.01) == {1, 3}


def test_min_p_is_relative_to_the_best() -> None:
    assert drawn(LOGITS, min_p=0.3) == {1, 3}  # exp(2 - 3) = 0.37, exp(1 - 3) = 0.14


def test_frequencies_follow_the_softmax() -> None:
    sampler = Sampler(SamplingParams(temperature=2.0, seed=1, **OFF), [])  # type: ignore[arg-type]
    counts = np.bincount([sampler.sample(LOGITS) for _ in range(20_000)], minlength=5) / 20_000
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    assert np.abs(counts - expected).max() < 0.015  # four standard deviations


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repeat_penalty=2.0), [1])
    assert sampler.sample(LOGITS) == 3  # 3.0 / 2 < 2.0
    negative = np.array([-1.0, -1.5], np.float32)
    assert Sampler(SamplingParams(temperature=0, repeat_penalty=2.0), [0]).sample(negative) == 1


def test_the_penalty_forgets_tokens_beyond_its_range() -> None:
    params = SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=2)
    assert Sampler(params, [1, 0, 0]).sample(LOGITS) == 1


@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.99),
)
@settings(max_examples=50)
def test_the_same_seed_gives_the_same_tokens(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature, top_k, top_p, min_p, seed=seed)
    logits = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * 5
    first, second = Sampler(params, []), Sampler(params, [])
    assert [first.sample(row) for row in logits] == [second.sample(row) for row in logits]


def test_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    Sampler(SamplingParams(temperature=1.0, repeat_penalty=1.5), [1, 2]).sample(logits)
    assert np.array_equal(logits, LOGITS)


def test_infinite_logits_pick_the_infinite_and_nan_is_an_error() -> None:
    logits = LOGITS.copy()
    logits[0] = -np.inf
    assert 0 not in drawn(logits)
    logits[0] = np.nan
    with pytest.raises(RequestError, match="NaN"):
        Sampler(SamplingParams(), []).sample(logits)


def test_top_k_among_ties_keeps_the_lower_ids() -> None:
    """A partition leaves those that its vector instructions happen to."""
    assert drawn(np.zeros(300, np.float32), top_k=3) == {0, 1, 2}


def test_a_logit_of_infinity_is_the_only_one() -> None:
    logits = LOGITS.copy()
    logits[4] = np.inf
    assert drawn(logits) == drawn(logits, min_p=0.5, top_p=0.5) == drawn(logits, temperature=0.0) == {4}


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-38, 1e38, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1.0, 1e308])
def test_no_penalty_is_too_small_or_too_large(penalty: float, temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, repeat_penalty=penalty, seed=0), [0, 1, 2, 3, 4])
    assert 0 <= sampler.sample(LOGITS) < 5
    assert 0 <= sampler.sample(np.full(5, -3, np.float32)) < 5  # though all would be -inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -1),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_parameter_out_of_range_is_an_error_that_names_it(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
