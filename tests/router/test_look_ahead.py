"""Looking ahead: what is guessed is judged when the exact experts are known, of the next token's layers too."""

from __future__ import annotations

import pytest

from smallthinker.router.look_ahead import WORTH, LookAhead


def test_a_guess_about_the_next_token_is_judged_at_the_next_token() -> None:
    look = LookAhead(4, 2, (1, 2), next_token=True)
    look.begin_token()
    assert look.next_targets() == (0, 1)
    before = look.likelihoods(-1, 0)
    look.remember(-1, 0, [5, 6], [0, 1])
    look.begin_token()
    look.judge(0, [5, 7])
    after = look.precision_of(-1, 0)
    assert after[0] > before[0] > after[1]


def test_guesses_of_a_token_that_was_given_up_are_not_judged_later() -> None:
    look = LookAhead(4, 2, (1, 2), next_token=True)
    look.begin_token()
    look.remember(0, 1, [5, 6], [0, 1])
    look.remember(-1, 1, [5, 6], [0])
    look.begin_token()
    look.begin_token()
    before = [look.precision_of(source, 1) for source in (0, -1)]
    look.judge(1, [5, 6])
    assert [look.precision_of(source, 1) for source in (0, -1)] == before


def test_the_next_token_is_no_longer_guessed_where_that_is_seldom_right_but_watched() -> None:
    look = LookAhead(4, 2, (1, 2), next_token=True)
    asked = []
    for _ in range(40):
        look.begin_token()
        asked.append(look.next_targets())
        for target in look.next_targets():
            look.remember(-1, target, [5, 6], [0, 1])
        for layer in range(2):
            look.judge(layer, [1, 2])
    assert asked[0] == (0, 1) and () in asked[20:] and (0, 1) in asked[20:]
    assert max(look.precision_of(-1, 0)) < WORTH


def test_without_a_predictor_only_this_token_is_guessed() -> None:
    look = LookAhead(4, 2, (1, 2))
    look.begin_token()
    assert look.next_targets() == ()
    assert look.targets(0) == (1, 2) and look.targets(3) == ()


def test_a_trial_without_it_asks_for_nothing() -> None:
    look = LookAhead(4, 2, (1, 2), next_token=True)
    look.begin_token()
    look.trial.on = False
    assert look.next_targets() == ()
    look.begin_token()
    assert look.targets(0) == ()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_models_of_few_layers_have_fewer_targets(layers: int) -> None:
    look = LookAhead(layers, 2, (1, 2), next_token=True)
    look.begin_token()
    assert look.next_targets() == (0, 1)[:layers]
    assert set(look.precision()) == {0, 1, 2}
