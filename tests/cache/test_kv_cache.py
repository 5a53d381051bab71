from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from models import HYBRID_ATTENTION, tiny_config

from smallthinker.cache.kv_cache import KVCache, kv_cache_bytes, layer_capacity

CONFIG = tiny_config(**HYBRID_ATTENTION)  # window 12 in layers 1 to 3


def test_global_layers_hold_the_context_and_sliding_ones_a_ring() -> None:
    assert layer_capacity(CONFIG, 0, 500, 8) == 500
    assert layer_capacity(CONFIG, 1, 500, 8) == 12 + 8 - 1
    assert layer_capacity(CONFIG, 1, 10, 8) == 10


def test_the_planned_bytes_are_the_allocated_ones() -> None:
    kv = KVCache(CONFIG, 500, 8)
    assert sum(a.nbytes for a in [*kv.keys, *kv.values]) == kv_cache_bytes(CONFIG, 500, 8)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 60), st.booleans()), max_size=30))
def test_a_rewind_that_is_allowed_finds_every_position_still_held(steps: list[tuple[int, int, bool]]) -> None:
    """Against a model of the ring that remembers which position each slot holds."""
    kv = KVCache(CONFIG, 400, 8)
    capacity = kv.keys[1].shape[1]
    held = [-1] * capacity
    for tokens, back, cancelled in steps:
        if kv.length + tokens > 400:
            break
        start = kv.begin(tokens)
        for position in range(start, start + tokens):
            held[position % capacity] = position
        if not cancelled:
            kv.advance(tokens)
        target = max(0, kv.length - back)
        if kv.can_rewind(target):
            kv.rewind(target)
        for position in range(max(0, kv.length - 12 + 1), kv.length):
            assert held[position % capacity] == position


def test_a_short_conversation_can_always_be_rewound() -> None:
    kv = KVCache(CONFIG, 400, 8)
    kv.begin(8)
    kv.advance(8)
    assert all(kv.can_rewind(length) for length in range(9))
    assert not kv.can_rewind(9)
