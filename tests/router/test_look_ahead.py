from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.router.look_ahead import WORTH, LookAhead
from smallthinker.router.predictor import FINAL
from smallthinker.router.trial import IdleShare, Trial

LAYERS, K = 6, 3


def switched_on(look: LookAhead) -> LookAhead:
    """Whatever a trial says."""
    look.trial.token = lambda *figures: None  # type: ignore[method-assign]
    look.trial.on = True
    return look


def always_on() -> LookAhead:
    return switched_on(LookAhead(LAYERS, K))


def token(look: LookAhead, answer: list[int], truth: list[int], missing: list[int] | None = None) -> int:
    """One token whose guesses are all `answer`; returns how many were made."""
    made = 0
    look.begin_token()
    for layer in range(LAYERS):
        look.score_predictions(layer, truth)
        target = look.target(layer)
        if target is not None:
            made += 1
            ranks = range(K) if missing is None else missing
            look.record_prediction(layer, target, [(answer[rank], rank) for rank in ranks])
    return made


def test_every_layer_but_the_last_asks_for_the_next() -> None:
    look = always_on()
    look.begin_token()
    assert [look.target(layer) for layer in range(LAYERS)] == [1, 2, 3, 4, 5, None]
    assert look.ahead.tolist() == [[-1] * LAYERS, [1, 2, 3, 4, 5, -1]]


def test_guesses_that_are_wrong_are_given_up_and_watched_until_they_are_right() -> None:
    look = always_on()
    made = [token(look, [7, 8, 9], [1, 2, 3]) for _ in range(200)]
    assert made[0] == LAYERS - 1
    assert sum(made[-32:]) == 2 * (LAYERS - 1)
    assert look.likelihoods(0, 1) == [0.0] * K
    assert max(look.precision(1)) < WORTH / 2
    made = [token(look, [1, 2, 3], [1, 2, 3]) for _ in range(400)]
    assert made[-1] == LAYERS - 1
    assert min(look.likelihoods(0, 1)) > WORTH


def test_ranks_are_judged_apart_and_only_where_a_read_was_needed() -> None:
    look = always_on()
    for _ in range(200):
        token(look, [1, 8, 9], [1, 2, 3], missing=[0, 1])
    likelihoods = look.likelihoods(2, 3)
    assert likelihoods[0] > 0.9
    assert likelihoods[1] == 0.0
    assert likelihoods[2] == 0.0  # never judged: every time it was resident


def test_a_token_given_up_half_way_is_not_judged_by_the_next() -> None:
    look = always_on()
    look.begin_token()
    look.record_prediction(1, 2, [(1, 0), (2, 1), (3, 2)])
    before = look.precision(2)
    token(look, [], [9, 9, 9], missing=[])
    assert look.precision(2) == before


@pytest.mark.parametrize(("gain", "pays"), [(0.8, True), (1.3, False)])
def test_what_pays_is_found_out_and_kept(gain: float, pays: bool) -> None:
    noise, trial = random.Random(0), Trial()
    assert trial.on
    ways = []
    for _ in range(2000):
        ways.append(trial.on)
        trial.token(noise.gauss(1.0, 0.05) * (gain if trial.on else 1.0))
    assert ways[-1000:].count(pays) > 900
    assert ways[-1200:].count(not pays) > 0  # it is tried again


def test_how_many_records_a_token_wants_is_no_gain_and_no_loss() -> None:
    """A token waits 0.7 ms for a record with guesses and 0.9 without, and computes for 20 ms; it wants 2 to 16."""
    right = 0
    for seed in range(200):
        noise, trial = random.Random(seed), Trial()
        for _ in range(Trial.WARM_UP + Trial.SPELL * Trial.SPELLS):
            records = noise.randrange(2, 17)
            waited = records * noise.gauss(0.7 if trial.on else 0.9, 0.05)
            trial.token(noise.gauss(20.0, 1.0) + waited, waited, records)
        right += trial.on
    assert right > 190


def test_a_trial_takes_turns() -> None:
    trial = Trial()
    ways = []
    for _ in range(Trial.WARM_UP + Trial.SPELL * Trial.SPELLS):
        ways.append(trial.on)
        trial.token(1.0)
    assert ways[Trial.WARM_UP :].count(True) == ways[Trial.WARM_UP :].count(False)
    assert sum(a != b for a, b in pairwise(ways)) == Trial.SPELLS - 1  # the first is the way it was


def test_a_guess_about_the_next_token_is_judged_at_the_next_token() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True))
    look.begin_token()
    assert look.target(FINAL) == 0
    before = look.precision(0)
    look.record_prediction(FINAL, 0, [(5, 0), (6, 1)])
    look.begin_token()
    look.score_predictions(0, [5, 7])
    after = look.precision(0)
    assert after[0] > before[0] > after[1]


def test_guesses_of_a_token_that_was_given_up_are_not_judged_later() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True))
    look.begin_token()
    look.record_prediction(0, 1, [(5, 0), (6, 1)])
    look.record_prediction(FINAL, 0, [(5, 0)])
    look.begin_token()
    look.begin_token()
    before = [look.precision(target) for target in (0, 1)]
    for layer in (0, 1):
        look.score_predictions(layer, [5, 6])
    assert [look.precision(target) for target in (0, 1)] == before


def test_the_next_token_is_no_longer_guessed_where_that_is_seldom_right_but_watched() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True))
    asked = []
    for _ in range(60):
        look.begin_token()
        asked.append(look.target(FINAL))
        if asked[-1] is not None:
            look.record_prediction(FINAL, 0, [(5, 0), (6, 1)])
        look.score_predictions(0, [1, 2])
    assert asked[0] == 0 and None in asked[20:] and 0 in asked[20:]
    assert max(look.precision(0)) < WORTH


def test_without_a_predictor_only_this_token_is_guessed() -> None:
    look = switched_on(LookAhead(4, 2))
    look.begin_token()
    assert look.target(FINAL) is None
    assert look.target(0) == 1 and look.target(3) is None


def test_a_trial_without_it_asks_for_nothing() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True))
    look.begin_token()
    look.trial.on = False
    assert look.target(FINAL) is None
    look.begin_token()
    assert look.target(0) is None and look.ahead.tolist() == [[-1] * 4] * 2


def test_a_model_of_one_layer_has_only_the_next_token_to_guess() -> None:
    look = switched_on(LookAhead(1, 2, next_token=True))
    look.begin_token()
    assert look.target(FINAL) == 0 and look.target(0) is None


def test_several_sequences_have_a_trial_of_their_own() -> None:
    alone = LookAhead(4, 2)
    for _ in range(Trial.WARM_UP + Trial.SPELL):
        alone.begin_token()
        alone.trial.token(1.0)
        assert alone.trials[True].on
    assert not alone.trial.on
    alone.begin_token(several=True)
    assert alone.trial.on


def test_a_layer_whose_router_reads_what_attention_gives_is_asked_before_it() -> None:
    look = switched_on(LookAhead(4, 2, own=(0, 2)))
    look.begin_token()
    assert look.ahead.tolist() == [[0, -1, 2, -1], [1, 2, 3, -1]]


def test_guesses_of_a_layer_by_its_own_state_and_by_the_one_before_are_judged_apart() -> None:
    look = switched_on(LookAhead(4, 2, own=(1, 2)))
    for _ in range(100):
        look.begin_token()
        look.record_prediction(0, 1, [(8, 0), (9, 1)])
        look.record_prediction(1, 1, [(1, 0), (2, 1)])
        look.score_predictions(1, [1, 2])
    assert max(look.precision(1)) < WORTH < min(look.precision(1, own=True))
    assert look.likelihoods(0, 1) == [0.0] * 2 and min(look.likelihoods(1, 1)) > 0.9
    look.begin_token()
    while look._tokens % 16 < 2:
        look.begin_token()
    assert look.ahead[:, :2].tolist() == [[-1, 1], [-1, 2]]


def test_nothing_is_read_for_a_guess_before_one_like_it_was_right() -> None:
    look = always_on()
    look.begin_token()
    assert look.likelihoods(0, 1) == [0.0] * K and look.target(0) == 1
    look.record_prediction(0, 1, [(1, 0), (2, 1)])
    look.score_predictions(1, [1, 7])
    assert look.likelihoods(0, 1)[0] > WORTH and look.likelihoods(0, 1)[1:] == [0.0] * 2


def test_guesses_that_are_never_right_are_never_read() -> None:
    look = always_on()
    for _ in range(300):
        token(look, [7, 8, 9], [1, 2, 3])
        assert not any(any(look.likelihoods(layer, layer + 1)) for layer in range(LAYERS - 1))


def through_a_trial(trial: Trial, wait: Callable[[bool, int], float], records: int = 3) -> None:
    """Layers 0 and 1 want so many records a token, each waited for so long."""
    for _ in range(Trial.SPELL * Trial.SPELLS):
        waits = [wait(trial.on, layer) * records for layer in (0, 1)]
        for layer in (0, 1):
            trial.layer(layer, waits[layer], records)
        trial.token(1.0 + sum(waits), sum(waits), 2 * records)


def test_a_layer_that_waits_longer_with_it_goes_without_until_the_next_trial() -> None:
    trial = Trial()
    for _ in range(Trial.WARM_UP):
        trial.layer(0, 99.0, 1)  # says nothing
        trial.token(1.0)
    through_a_trial(trial, lambda on, layer: (0.5, 1.2)[layer] if on else 1.0)
    assert trial.on and trial.losing == {1}
    for _ in range(Trial.MAX_REST):
        if not trial.losing:
            break
        trial.token(1.0)
    assert trial.losing == frozenset()
    through_a_trial(trial, lambda on, layer: 0.5 if on else 1.0)
    assert trial.on and trial.losing == frozenset()


def test_few_records_and_small_losses_are_chance() -> None:
    trial = Trial()
    for _ in range(Trial.WARM_UP):
        trial.token(1.0)
    through_a_trial(trial, lambda on, layer: (0.5, 1.05)[layer] if on else 1.0)
    assert trial.losing == frozenset()
    trial = Trial()
    for _ in range(Trial.WARM_UP):
        trial.token(1.0)
    through_a_trial(trial, lambda on, layer: (0.5, 1.2)[layer] if on else 1.0, records=1)
    assert trial.losing == frozenset()


def test_a_losing_layer_is_asked_for_nothing() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True, own=(1, 2)))
    look.trial.losing = frozenset({0, 2})
    look.begin_token()
    assert look.ahead.tolist() == [[-1, 1, -1, -1], [1, -1, 3, -1]] and look.target(FINAL) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 900), st.integers(0, 900)), max_size=400))
def test_what_is_read_in_vain_takes_its_share_of_the_idle_time_at_most(
    tokens: list[tuple[float, int, int]],
) -> None:
    """Of a disk of 1,000 bytes a second; what one token wastes is known only after it."""
    share, idle, wasted = IdleShare(), 0.0, 0.0
    for seconds, certain, vain in tokens:
        vain = vain if share.is_left else 0
        share.token(seconds, 1000.0, certain, vain)
        idle = IdleShare.KEEP * idle + max(1000 * seconds - certain, 0)
        wasted = IdleShare.KEEP * wasted + vain
        assert wasted <= IdleShare.SHARE * idle + 900 + 1e-6 * wasted
        assert share.is_left == (wasted <= IdleShare.SHARE * idle) or abs(wasted - IdleShare.SHARE * idle) < 1e-6


def test_over_that_share_nothing_is_guessed() -> None:
    look = switched_on(LookAhead(4, 2, next_token=True))
    look.idle.token(1.0, 1000.0, 900, 26)
    look.begin_token()
    assert look.target(0) is None and look.target(FINAL) is None and look.ahead.tolist() == [[-1] * 4] * 2
    look.idle.token(1.0, 1000.0, 900, 0)
    look.begin_token()
    assert look.target(0) == 1
