"""When speculation is on: by injected seconds, no clock. Costs are in plain tokens of one second."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from smallthinker.generation.speculation.offer import Offer
from smallthinker.generation.speculation.payoff import Payoff

LONG_MATCH = Offer("match 9", 0.85)


class Machine:
    """Whose batches of n tokens take `cost(n)` seconds, with texts of which `chance` of the proposals is right."""

    def __init__(self, cost: Callable[[int], float], chance: float, seed: int = 0, noise: float = 0.0) -> None:
        self.payoff, self.cost, self.chance, self.noise = Payoff(), cost, chance, noise
        self.rng = np.random.default_rng(seed)
        self.sec, self.tokens, self.batches = 0.0, 0, 0

    def write(self, tokens: int, kind: Offer = LONG_MATCH, most: int = 12, offered: float = 1.0) -> float:
        """So many times as fast as without. offered: the share of steps that have a proposal."""
        self.payoff.begin_answer()
        sec, end, began = self.sec, self.tokens + tokens, self.tokens
        while self.tokens < end:
            n = self.payoff.choose(kind, most)[0] if self.rng.random() < offered else 0
            proposing = n * kind.sec_each
            took = self.cost(n + 1) * (1 + self.noise * self.rng.random()) + proposing
            self.sec += took
            if not n:
                self.payoff.plain(took)
                self.tokens += 1
                continue
            right = 0
            while right < n and self.rng.random() < self.chance:
                right += 1
            self.payoff.verified(kind.kind, n, right, took, proposing)
            self.tokens += 1 + right
            self.batches += 1
        return (self.tokens - began) / (self.sec - sec)


def dense(n: int) -> float:
    return 1 + 0.22 * (n - 1)


def sparse(n: int) -> float:
    return 1 + 0.45 * (n - 1)


def disk(n: int) -> float:
    return float(n)


@pytest.mark.parametrize(("cost", "chance", "fastest"), [(dense, 0.95, 2.0), (sparse, 0.97, 1.4), (dense, 0.8, 1.3)])
def test_where_proposals_are_right_and_batches_cheap_it_is_soon_on(
    cost: Callable[[int], float], chance: float, fastest: float
) -> None:
    assert Machine(cost, chance).write(200) > fastest


@pytest.mark.parametrize("cost", [dense, sparse, disk, lambda n: 2.0 * n - 1])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("kind", [LONG_MATCH, Offer("match 2", 0.3), Offer("draft", 0.6, 0.1)])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_where_it_cannot_help_no_answer_is_slower_than_0_97(
    cost: Callable[[int], float], chance: float, kind: Offer, noise: float
) -> None:
    for seed in range(5):
        machine = Machine(cost, chance, seed, noise)
        plain = cost(1) * (1 + noise / 2)
        for _ in range(4):
            assert machine.write(128, kind) * plain > (0.97 if not noise else 0.95)


def test_a_good_text_leaves_nothing_for_a_bad_one_to_lose() -> None:
    machine = Machine(dense, 0.97)
    machine.write(300)
    machine.chance = 0.0
    assert machine.write(64) > 0.97


def test_nothing_is_proposed_before_a_plain_token_s_time_is_known() -> None:
    payoff = Payoff()
    for _ in range(3):
        assert payoff.choose(LONG_MATCH, 12) == (0, 1.0)
        payoff.plain(1.0)
    assert payoff.choose(LONG_MATCH, 12)[0] > 0


def test_what_all_proposals_being_wrong_would_lose_is_never_more_than_there_is() -> None:
    payoff, rng = Payoff(), np.random.default_rng(0)
    for _ in range(2000):
        n, _ = payoff.choose(LONG_MATCH, 12)
        assert not n or payoff.cost(n + 1) - 1 <= payoff.credit
        if n:
            payoff.verified(LONG_MATCH.kind, n, int(rng.integers(0, n + 1)), dense(n + 1))
        else:
            payoff.plain(1.0)


def test_a_plain_token_is_computed_now_and_then_for_comparison() -> None:
    payoff = Payoff()
    for _ in range(4):
        payoff.plain(1.0)
    batches = 0
    while (n := payoff.choose(LONG_MATCH, 12)[0]) and batches < 1000:
        payoff.verified(LONG_MATCH.kind, n, n, dense(n + 1))
        batches += 1
    assert 16 <= batches < 100


def test_a_disk_that_has_become_memory_is_noticed() -> None:
    machine = Machine(disk, 0.95)
    machine.write(600)
    batches = machine.batches
    assert batches < 60
    machine.cost = dense
    machine.write(1500)
    assert machine.batches > batches + 100


def test_a_source_that_takes_time_must_earn_it() -> None:
    payoff = Payoff()
    for _ in range(200):
        payoff.plain(1.0)
    free, _ = payoff.choose(LONG_MATCH, 12)
    dear, _ = payoff.choose(LONG_MATCH._replace(sec_each=0.9), 12)
    assert free > 0 == dear


def test_what_was_saved_is_measured_against_plain_tokens() -> None:
    payoff = Payoff()
    for _ in range(5):
        payoff.plain(2.0)
    payoff.choose(LONG_MATCH, 3)
    assert payoff.verified(LONG_MATCH.kind, 3, 2, 4.0) == 2.0
    assert payoff.verified(LONG_MATCH.kind, 3, 0, 4.0) == -2.0
