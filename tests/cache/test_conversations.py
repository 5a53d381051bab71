from __future__ import annotations

import numpy as np
import pytest
from tiny_models import DENSE_ATTENTION, HYBRID_ATTENTION, tiny_config

from smallthinker.cache.conversations import Conversation, Conversations, shared_prefix
from smallthinker.cache.sequence_state import SequenceShape, SequenceState

DENSE, HYBRID = tiny_config(**DENSE_ATTENTION), tiny_config(**HYBRID_ATTENTION)  # a window of 12
RNG = np.random.default_rng(0)


def conversations(most: int, hybrid: bool = False) -> Conversations:
    shape = SequenceShape.of(HYBRID if hybrid else DENSE, 200, 8)
    return Conversations(lambda: SequenceState(shape), most)


def write(conversation: Conversation, tokens: list[int]) -> None:
    """Stand-in for computing them: bytes that tell each token and its position."""
    for token in tokens:
        position = conversation.state.begin(1)
        for layer in conversation.state.layers:
            for array in layer.arrays.values():
                array[:, position // 16 % array.shape[1], position % 16 :: 16] = (token + position) % 251
        conversation.state.advance(1)
    conversation.extend(tokens)


def opened(pool: Conversations, prompt: list[int]) -> tuple[Conversation, int]:
    conversation, shared = pool.open(prompt)
    assert conversation.tokens == prompt[:shared]
    assert conversation.state.length == shared
    write(conversation, prompt[shared:])
    return conversation, shared


def test_a_longer_prompt_continues_the_longest_beginning_that_is_held() -> None:
    pool = conversations(3)
    for prompt in ([1, 2, 3], [1, 2, 3, 4, 5, 6], [9]):
        pool.keep(opened(pool, prompt)[0])
    _, shared = opened(pool, [1, 2, 3, 4, 5, 6, 7])
    assert shared == 6


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    pool = conversations(1)
    pool.keep(opened(pool, [1, 2, 3])[0])
    assert opened(pool, [1, 2, 3])[1] == 2


def test_a_short_end_is_given_up_and_a_long_one_is_left_to_its_owner() -> None:
    pool = conversations(3)
    system, chat = list(range(20)), list(range(100, 160))
    first, _ = opened(pool, system + chat)
    pool.keep(first)
    second, shared = opened(pool, [*system, 7])
    assert (second is first, shared) == (False, 20)
    pool.keep(second)
    again, shared = opened(pool, [*system, *chat[:50], 7])  # the end of the answer is written again
    assert (again is first, shared) == (True, 70)


def test_what_is_copied_is_what_computing_it_would_have_written() -> None:
    for hybrid in (False, True):
        pool, fresh = conversations(2, hybrid), conversations(1, hybrid)
        prompt, other = RNG.integers(0, 300, 33).tolist(), [7, 8]
        running, _ = opened(pool, prompt)
        copied, shared = opened(pool, prompt[:-1] + other)
        computed, _ = opened(fresh, prompt[:-1] + other)
        assert copied is not running and shared == 32
        got, wanted = dict(copied.state.arrays(34)), dict(computed.state.arrays(34))
        assert got.keys() == wanted.keys()
        for name in got:
            np.testing.assert_array_equal(got[name], wanted[name])
        assert [copied.state.can_rewind(n) for n in range(35)] == [computed.state.can_rewind(n) for n in range(35)]


def test_a_ring_that_has_gone_on_is_not_continued() -> None:
    pool = conversations(2, hybrid=True)
    prompt = RNG.integers(0, 300, 100).tolist()
    pool.keep(opened(pool, prompt)[0])
    assert opened(pool, [*prompt[:50], 1])[1] == 0
    assert opened(pool, [*prompt[:98], 1])[1] == 98


def test_the_one_used_least_recently_makes_room_and_never_one_that_runs() -> None:
    pool = conversations(3)
    a, b, c = (opened(pool, [n] * 10)[0] for n in range(3))
    for conversation in (b, a):
        pool.keep(conversation)
    assert opened(pool, [50] * 10)[0] is b
    assert opened(pool, [51] * 10)[0] is a
    with pytest.raises(RuntimeError):
        pool.open([52])
    assert c.tokens == [2] * 10


def test_the_prefix_of_two_lists_is_what_both_begin_with() -> None:
    for _ in range(200):
        a, b = (RNG.integers(0, 2, RNG.integers(0, 6)).tolist() for _ in range(2))
        n = shared_prefix(a, b)
        assert a[:n] == b[:n]
        assert n == min(len(a), len(b)) or a[n] != b[n]
