from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker import _kernels
from smallthinker.cache.kv_ring import KvKind, KvRing
from smallthinker.cache.layer_state import U8, layer_shape
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.errors import ConfigError, RequestError
from smallthinker.models.description import Attention, Mamba2, Mixer, Model, Norm, ShortConv

CONFIG = tiny_config(**HYBRID_ATTENTION)  # window 12 in layers 1 to 3
WIDE = tiny_config(**HYBRID_ATTENTION, head_dim=64)
KINDS: list[KvKind] = ["f16", "q8"]


def capacity(window: int, context: int, chunk: int) -> int:
    return KvRing.of(Attention(2, 2, 16, None, window), context, chunk, "f16").capacity


def with_mixers(*mixers: Mixer) -> Model:
    return replace(CONFIG, layers=tuple(replace(CONFIG.layers[0], mixer=mixer) for mixer in mixers))


attentions = st.builds(
    lambda kv_heads, dim, window: Attention(2 * kv_heads, kv_heads, 32 * dim, None, window),
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 40),
)  # fmt: skip


def test_global_layers_hold_the_context_and_sliding_ones_a_ring_in_whole_groups_of_16() -> None:
    assert capacity(0, 496, 8) == 496
    assert capacity(0, 497, 8) == 512
    assert capacity(12, 496, 5) == 12 + 5 - 1
    assert capacity(12, 496, 6) == 32
    assert capacity(12, 10, 8) == 16


@given(st.lists(attentions, min_size=1, max_size=4), st.integers(1, 600), st.integers(1, 64), st.sampled_from(KINDS))
def test_the_planned_bytes_are_the_allocated_ones_whatever_each_layer_is(
    mixers: list[Attention], context: int, chunk: int, kind: KvKind
) -> None:
    shape = SequenceShape.of(with_mixers(*mixers), context, chunk, kind)
    state = SequenceState(shape)
    assert sum(array.nbytes for layer in state.layers for array in layer.arrays.values()) == shape.nbytes
    written = dict(state.arrays(context))  # all of it
    assert list(written) == [f"layers.{n}.{name}" for n in range(len(mixers)) for name in ("keys", "values")]
    assert sum(part.nbytes for parts in written.values() for part in parts) == shape.nbytes
    touched = [shape.touched_bytes(positions) for positions in range(0, context + 1, 16)]
    assert touched == sorted(touched) and shape.touched_bytes(context) == shape.nbytes


def test_q8_takes_a_byte_and_a_sixteenth_where_f16_takes_two() -> None:
    f16, q8 = (SequenceShape.of(WIDE, 500, 8, kind).nbytes for kind in KINDS)
    assert q8 * 32 == f16 * 17


def test_q8_of_a_head_that_is_no_multiple_of_32_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(
        RequestError, match=r"kv: q8 needs a head_dim that is a multiple of 32, this model has 16; use f16"
    ):
        SequenceShape.of(CONFIG, 500, 8, "q8")
    assert not SequenceShape.of(CONFIG, 500, 8).can_be("q8")
    with pytest.raises(RequestError, match="kv: expected f16 or q8, found 'q4'"):
        SequenceShape.of(CONFIG, 500, 8, "q4")  # type: ignore[arg-type]


@pytest.mark.parametrize("mixer", [Mamba2(1, 2, 1, 4, 4, False, Norm(1e-6)), ShortConv(64, 3), None])
def test_a_mixer_whose_state_is_not_known_is_refused_by_its_name(mixer: Mixer | None) -> None:
    with pytest.raises(ConfigError, match=f"mixer: .* {type(mixer).__name__}"):
        layer_shape(replace(CONFIG.layers[0], mixer=mixer), 500, 8, "f16")


def test_what_files_are_known_by_stays_as_it_was() -> None:
    """Conversations that an earlier version saved are found: the capacities of its rings, in order."""
    assert SequenceShape.of(CONFIG, 400, 8).saved_as == "[32, 32, 32]"
    assert SequenceShape.of(tiny_config(), 400, 8).saved_as == "[]"


backs = st.just(0) | st.integers(0, 60)  # else it seldom gets beyond a ring's end
steps = st.lists(st.tuples(st.integers(1, 24), backs, st.booleans()), min_size=5, max_size=40)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 24), st.sampled_from([20, 100, 400]), steps
)  # fmt: skip
def test_what_can_be_rewound_is_exactly_what_is_still_held(
    windows: list[int], chunk: int, context: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Against a model of the rings that remembers which position each place holds."""
    shape = SequenceShape.of(with_mixers(*(Attention(2, 2, 16, None, window) for window in windows)), context, chunk)
    state = SequenceState(shape)
    held = [[-1] * capacity(window, context, chunk) for window in windows]

    def are_held(length: int) -> list[bool]:
        """Of each layer, whether it has every position that the next one sees."""
        return [
            all(
                places[position % len(places)] == position
                for position in range(max(0, length - window + 1) if window else 0, length)
            )
            for places, window in zip(held, windows, strict=True)
        ]

    for tokens, back, is_cancelled in steps:
        tokens = min(tokens, chunk, context - state.length)
        if tokens:
            start = state.begin(tokens)
            for places in held:
                for position in range(start, start + tokens):
                    places[position % len(places)] = position
            assert all(are_held(start))  # the chunk's first query finds its window
            if not is_cancelled:
                state.advance(tokens)
        assert not state.can_rewind(state.length + 1)
        for length in range(state.length + 1):
            right = are_held(length)
            assert [layer.can_continue(length, state.touched_after(0)) for layer in shape.layers] == right
            assert state.can_rewind(length) == all(right)
        if state.can_rewind(max(0, state.length - back)):
            state.rewind(max(0, state.length - back))


@dataclass(frozen=True)
class Sum:
    """The shape of a state that can't go back, as a recurrent layer's: one array, rewritten by every token."""

    arrays: Mapping[str, tuple[int, ...]]
    saved_as: str = "sum"

    def can_be(self, kind: KvKind) -> bool:
        return True

    def touched_bytes(self, positions: int) -> int:
        return 32 if positions else 0

    def can_continue(self, length: int, written: int) -> bool:
        return length in (0, written)

    def written_parts(self, array: U8, positions: int) -> list[U8]:
        return [array] if positions else []

    def bind(self, arrays: Mapping[str, U8]) -> _kernels.KvLayer:
        return _kernels.KvLayer("f16", np.zeros((1, 1, 64), np.uint8), np.zeros((1, 1, 64), np.uint8), 2)


def test_a_layer_that_cannot_go_back_keeps_the_others_from_it() -> None:
    rings = SequenceShape.of(CONFIG, 400, 8).layers
    shape = SequenceShape((*rings, Sum({"sum": (32,)})))
    assert shape.nbytes == SequenceShape(rings).nbytes + 32
    assert shape.saved_as == "[32, 32, 32, sum]"
    state = SequenceState(shape)
    state.begin(5)
    state.advance(5)
    state.layers[-1].arrays["sum"][:] = 7
    assert [state.can_rewind(length) for length in range(7)] == [True, False, False, False, False, True, False]
    copied = SequenceState(shape)
    copied.copy_from(state)
    saved = dict(copied.arrays(5))
    assert list(saved)[-1] == "layers.4.sum" and saved["layers.4.sum"][0].tolist() == [7] * 32
    state.begin(3)  # cancelled: it may have taken some of it
    assert not state.can_rewind(5) and state.can_rewind(0)
    assert copied.can_rewind(5)


def test_a_short_conversation_can_always_be_rewound() -> None:
    state = SequenceState(SequenceShape.of(CONFIG, 400, 8))
    state.begin(8)
    state.advance(8)
    assert all(state.can_rewind(length) for length in range(9))
    assert not state.can_rewind(9)
