from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import HYBRID_ATTENTION, tiny_config

from smallthinker.cache.kv_cache import KVCache, KvKind, check_kind, kv_cache_bytes, layer_capacity
from smallthinker.errors import RequestError

CONFIG = tiny_config(**HYBRID_ATTENTION)  # window 12 in layers 1 to 3
WIDE = tiny_config(**HYBRID_ATTENTION, head_dim=64)


def test_global_layers_hold_the_context_and_sliding_ones_a_ring_in_whole_groups_of_16() -> None:
    assert layer_capacity(CONFIG, 0, 496, 8) == 496
    assert layer_capacity(CONFIG, 0, 497, 8) == 512
    assert layer_capacity(CONFIG, 1, 496, 5) == 12 + 5 - 1
    assert layer_capacity(CONFIG, 1, 496, 6) == 32
    assert layer_capacity(CONFIG, 1, 10, 8) == 16


@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_the_planned_bytes_are_the_allocated_ones(kind: KvKind) -> None:
    kv = KVCache(WIDE, 500, 8, kind)
    assert sum(a.nbytes for a in [*kv.keys, *kv.values]) == kv_cache_bytes(WIDE, 500, 8, kind)


def test_q8_takes_a_byte_and_a_sixteenth_where_f16_takes_two() -> None:
    assert kv_cache_bytes(WIDE, 500, 8, "q8") * 32 == kv_cache_bytes(WIDE, 500, 8, "f16") * 17


def test_q8_of_a_head_that_is_no_multiple_of_32_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(
        RequestError, match=r"kv: q8 needs a head_dim that is a multiple of 32, this model has 16; use f16"
    ):
        KVCache(CONFIG, 500, 8, "q8")
    with pytest.raises(RequestError, match="kv: expected f16 or q8, found 'q4'"):
        check_kind(CONFIG, "q4")


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 60), st.booleans()), max_size=30))
def test_a_rewind_that_is_allowed_finds_every_position_still_held(steps: list[tuple[int, int, bool]]) -> None:
    """Against a model of the ring that remembers which position each slot holds."""
    kv = KVCache(CONFIG, 400, 8)
    capacity = layer_capacity(CONFIG, 1, 400, 8)
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
