from __future__ import annotations

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_experts import THE_ONE, Layer, choose, neurons
from random_inputs import Make, bits, normal, seeds, uneven

from smallthinker import _kernels

sizes = st.integers(1, 9).map(lambda n: 32 * n)
tiles = st.integers(1, 19)
formats = st.sampled_from([quant for quant in _kernels.formats() if _kernels.has_rows(quant)])


@given(seed=seeds, hidden=sizes, ffn=tiles, tokens=st.integers(1, 11), k=st.integers(1, 3))
def test_experts_match_the_reference(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, seed: int, hidden: int, ffn: int, tokens: int, k: int
) -> None:
    ffn = neurons(quant, ffn)
    layer = Layer.random(quant, hidden, ffn, 4, seed)
    x, chosen = normal(seed + 9, tokens, hidden), choose(seed, tokens, 4, k)
    out, live = layer.run(pool, x, chosen)
    n_live = 0
    for e in np.unique(chosen):
        pairs = np.flatnonzero(chosen.ravel() == e)
        expected, rounding = numpy_reference.expert(layer.quants, *layer.matrices[e], x[pairs // k])
        n_live += int((numpy_reference.linear(quant, layer.matrices[e][0], x[pairs // k]) > 0).sum())
        tolerance = 1.01 * rounding + 1e-4 * np.abs(expected) + 1e-4 * hidden * np.sqrt(ffn)
        assert (np.abs(out[pairs] - expected) <= tolerance).all()
    assert abs(live - n_live) <= 2  # a gate next to zero may round to either side


@given(seed=seeds, quants=st.tuples(formats, formats, formats), tokens=st.integers(1, 11))
def test_gate_up_and_down_have_a_format_each(
    pools: list[_kernels.ThreadPool], seed: int, quants: _kernels.FfnQuants, tokens: int
) -> None:
    layer = Layer.random(quants, 96, 160, 3, seed)
    x, chosen = normal(seed + 9, tokens, 96), choose(seed, tokens, 3, 2)
    out, _ = layer.run(pools[0], x, chosen)
    for e in np.unique(chosen):
        pairs = np.flatnonzero(chosen.ravel() == e)
        expected, rounding = numpy_reference.expert(quants, *layer.matrices[e], x[pairs // 2])
        tolerance = 1.01 * rounding + 1e-4 * np.abs(expected) + 1e-4 * 96 * np.sqrt(160)
        assert (np.abs(out[pairs] - expected) <= tolerance).all()
    alone = np.vstack([layer.run(pools[1], x[t : t + 1], chosen[t : t + 1])[0] for t in range(tokens)])
    np.testing.assert_array_equal(bits(out), bits(alone))


@given(
    seed=seeds,
    hidden=sizes,
    ffn=tiles,
    tokens=st.integers(1, 19),
    k=st.integers(1, 3),
    make=st.sampled_from([normal, uneven]),
)
def test_a_token_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(
    pools: list[_kernels.ThreadPool],
    quant: _kernels.Quant,
    seed: int,
    hidden: int,
    ffn: int,
    tokens: int,
    k: int,
    make: Make,
) -> None:
    ffn = neurons(quant, ffn)
    layer = Layer.random(quant, hidden, ffn, 4, seed)
    x, chosen = make(seed + 9, tokens, hidden), choose(seed, tokens, 4, k)
    together = [layer.run(pool, x, chosen) for pool in pools]
    alone = [layer.run(pools[1], x[t : t + 1], chosen[t : t + 1]) for t in range(tokens)]
    for out, live in together:
        np.testing.assert_array_equal(bits(out), bits(np.vstack([o for o, _ in alone])))
        assert live == sum(n for _, n in alone)


def test_dead_neurons_are_not_read(pool: _kernels.ThreadPool, quant: _kernels.Quant) -> None:
    layer = Layer.random(quant, 64, 32, 1, 0)
    x = normal(1, 1, 64)
    expected, _ = layer.run(pool, x, THE_ONE)
    up_at, down_at = (section.offset for section in layer.sections[1:])
    row = _kernels.packed_bytes(quant, "rows", 1, 64)
    dead = np.flatnonzero(numpy_reference.linear(quant, layer.matrices[0][0], x)[0] < -1e-3)
    assert len(dead) > 0
    for section in (up_at, down_at):
        for j in dead:
            layer.slots[0, section + j * row : section + (j + 1) * row] = 0xFF  # NaN scales, NaN weights
    out, live = layer.run(pool, x, THE_ONE)
    np.testing.assert_array_equal(bits(out), bits(expected))
    assert live == 32 - len(dead)


@pytest.mark.parametrize(
    ("block_quant", "level", "weight"),
    [("q8_0", 0x80, -128), ("q8_0", 0x7F, 127), ("q4_0", 0x00, -8), ("q4_0", 0xFF, 7)],
)
def test_integers_at_both_ends_of_their_range_do_not_saturate_in_up_nor_in_down(
    pool: _kernels.ThreadPool, block_quant: _kernels.Quant, level: int, weight: int
) -> None:
    quants: _kernels.FfnQuants = ("f32", block_quant, block_quant)
    sections = _kernels.record_sections(quants, 64, 64, "relu", True)
    block = np.full(_kernels.formats()[block_quant][1], level, np.uint8)
    block[:2] = np.array([0.5], "<f2").view(np.uint8)
    rows = _kernels.repack(block_quant, "rows", np.tile(block, (64, 2)))
    record = np.zeros((1, sections[-1].offset + sections[-1].nbytes), np.uint8)
    for section, packed in zip(
        sections, (_kernels.pack("f32", "tiles", np.eye(64, dtype=np.float32)), rows, rows), strict=True
    ):
        record[0, section.offset : section.offset + section.nbytes] = packed
    for tokens in (1, 2):  # a token takes its live rows, a batch unpacks all
        one = [np.array(a, np.int32) for a in ([0], [0, tokens], range(tokens))]
        out = np.empty((tokens, 64), np.float32)
        _kernels.experts(pool, quants, 64, 64, "relu", True, np.ones((tokens, 64), np.float32), record, *one, 1, out)
        np.testing.assert_allclose(out, 64 * 64 * (weight / 2.0) ** 2, rtol=1e-5)


def test_an_expert_whose_neurons_are_all_dead_gives_zeros(pool: _kernels.ThreadPool, quant: _kernels.Quant) -> None:
    layer = Layer.random(quant, 64, 32, 1, 0)
    out, live = layer.run(pool, np.zeros((2, 64), np.float32), np.array([[0], [0]]))
    assert live == 0
    assert not out.any()


@given(seed=seeds, hidden=sizes, ffn=tiles, exponent=st.integers(-14, 10), weight_exponent=st.integers(-6, 3))
def test_experts_of_every_size_match_the_reference(
    pool: _kernels.ThreadPool,
    quant: _kernels.Quant,
    seed: int,
    hidden: int,
    ffn: int,
    exponent: int,
    weight_exponent: int,
) -> None:
    ffn = neurons(quant, ffn)
    layer = Layer.of(quant, [tuple(normal(seed, 3, ffn, hidden) * np.float32(10.0**weight_exponent))])
    x = normal(seed + 1, 1, hidden) * np.float32(10.0**exponent)
    out, _ = layer.run(pool, x, THE_ONE)
    expected, rounding = numpy_reference.expert(layer.quants, *layer.matrices[0], x)
    gate, up, down = (np.abs(w).astype(np.float64) for w in layer.matrices[0])
    magnitude = (np.abs(x) @ gate.T) * (np.abs(x) @ up.T) @ down.T
    assert (np.abs(out - expected) <= 1.01 * rounding + 1e-5 * magnitude + 1e-25).all()


@pytest.mark.parametrize("tokens", [1, 3])
def test_what_is_not_finite_in_a_live_row_of_up_reaches_every_column(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, tokens: int
) -> None:
    gate, up, down = np.abs(normal(0, 3, 96, 160))  # with positive inputs, every neuron is live
    x, chosen = np.abs(normal(1, tokens, 160)), np.zeros((tokens, 1), np.int64)
    for bad in (np.nan, np.inf):
        for w in (gate, up):
            kept, w[70, 33] = w[70, 33], bad
            out, live = Layer.of(quant, [(gate, up, down)]).run(pool, x, chosen)
            w[70, 33] = kept
            assert live == 96 * tokens
            assert not np.isfinite(out).any()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_down_reaches_its_columns_and_is_not_lost(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, tokens: int, bad: float
) -> None:
    gate, up, down = np.abs(normal(0, 3, 96, 160))
    x, chosen = np.abs(normal(1, tokens, 160)), np.zeros((tokens, 1), np.int64)
    clean, _ = Layer.of(quant, [(gate, up, down)]).run(pool, x, chosen)
    assert np.isfinite(clean).all()
    down[70, 130] = bad
    out, _ = Layer.of(quant, [(gate, up, down)]).run(pool, x, chosen)
    reached = slice(130, 131) if quant in ("f32", "f16", "bf16") else slice(128, 160)
    assert not np.isfinite(out[:, reached]).any()


def test_what_overflows_is_not_finite(pool: _kernels.ThreadPool, quant: _kernels.Quant) -> None:
    layer = Layer.of(quant, [tuple(np.abs(normal(0, 3, 64, 64)))])
    for tokens in (1, 2):
        out, _ = layer.run(pool, np.full((tokens, 64), 1e25, np.float32), np.zeros((tokens, 1), np.int64))
        assert not np.isfinite(out).any()


def test_an_expert_without_pairs_and_a_call_without_experts_do_nothing(
    pool: _kernels.ThreadPool, quant: _kernels.Quant
) -> None:
    layer, x = Layer.random(quant, 64, 32, 2, 0), normal(1, 1, 64)
    expected, live = layer.run(pool, x, THE_ONE)
    out = np.full((1, 64), 7, np.float32)
    for slot_ids, offsets, pairs, n in (([], [0], [], 0), ([1, 0, 1], [0, 0, 1, 1], [0], live)):
        arrays = [np.array(a, np.int32) for a in (slot_ids, offsets, pairs)]
        assert _kernels.experts(pool, *layer.shape, x, layer.slots, *arrays, 1, out) == n
        np.testing.assert_array_equal(out, expected if n else np.full((1, 64), 7))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_stays_so_and_leaves_the_others_alone(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, bad: float
) -> None:
    layer = Layer.random(quant, 64, 64, 2, 0)
    x, chosen = normal(1, 5, 64), choose(0, 5, 2, 2)
    clean, _ = layer.run(pool, x, chosen)
    x[2, 40] = bad
    out, _ = layer.run(pool, x, chosen)
    assert not np.isfinite(out[4:6]).any()
    others = np.arange(10) // 2 != 2
    np.testing.assert_array_equal(bits(out[others]), bits(clean[others]))


def test_rows_without_a_pair_stay_as_they_were(pool: _kernels.ThreadPool) -> None:
    layer = Layer.random("q4_0", 64, 32, 1, 0)
    out = np.full((6, 64), 7, np.float32)
    ids, offsets, pairs = (np.array(a, np.int32) for a in ([0], [0, 1], [3]))
    _kernels.experts(pool, *layer.shape, normal(1, 3, 64), layer.slots, ids, offsets, pairs, 2, out)
    assert (np.delete(out, 3, axis=0) == 7).all()
    assert (out[3] != 7).all()


@given(seed=seeds, tokens=st.integers(0, 5), k=st.integers(1, 6), dim=st.integers(1, 70))
def test_contributions_are_added_in_ascending_order(
    pool: _kernels.ThreadPool, seed: int, tokens: int, k: int, dim: int
) -> None:
    x, c, w = normal(seed, tokens, dim), normal(seed + 1, tokens * k, dim), normal(seed + 2, tokens, k)
    expected = x.copy()
    for j in range(k):
        expected += w[:, j, None] * c.reshape(tokens, k, dim)[:, j]
    _kernels.combine(pool, x, c, w)
    np.testing.assert_array_equal(x, expected)
