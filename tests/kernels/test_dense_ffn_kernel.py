"""Experts and slices in which every neuron is computed: any activation, with a gate or without."""

from __future__ import annotations

import numpy as np
import numpy_reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_experts import THE_ONE, Layer, choose, neurons
from random_inputs import F32, Make, at_most, bits, normal, seeds, uneven

from smallthinker import _kernels

PLAIN = [activation for activation in _kernels.activations() if activation != "clamped_swiglu"]
SHAPES = [(activation, gated) for activation in PLAIN for gated in (True, False)]
DENSE: list[tuple[_kernels.Activation, bool]] = [shape for shape in SHAPES if shape != ("relu", True)]

sizes = st.integers(1, 9).map(lambda n: 32 * n)
tiles = st.integers(1, 19)
formats = st.sampled_from(list(_kernels.formats()))
dense = st.sampled_from(DENSE)


def assert_matches_the_reference(layer: Layer, x: F32, chosen: np.ndarray, out: F32) -> None:
    _, hidden, ffn, activation, gated = layer.shape
    for e in np.unique(chosen):
        pairs = np.flatnonzero(chosen.ravel() == e)
        gate, up, down = layer.matrices[e]
        of_tokens = x[pairs // chosen.shape[1]]
        expected, rounding = numpy_reference.dense_expert(
            layer.quants, activation, gate if gated else None, up, down, of_tokens
        )
        tolerance = 1.01 * rounding + 1e-4 * np.abs(expected) + 1e-4 * hidden * np.sqrt(ffn)
        assert (np.abs(out[pairs] - expected) <= tolerance).all()


@at_most(8)
@given(seed=seeds, hidden=sizes, ffn=tiles, shape=dense, tokens=st.integers(1, 11), k=st.integers(1, 3))
def test_experts_match_the_reference(
    pool: _kernels.ThreadPool,
    quant: _kernels.Quant,
    seed: int,
    hidden: int,
    ffn: int,
    shape: tuple[_kernels.Activation, bool],
    tokens: int,
    k: int,
) -> None:
    ffn = neurons(quant, ffn)
    layer = Layer.random(quant, hidden, ffn, 4, seed, *shape)
    x, chosen = normal(seed + 9, tokens, hidden), choose(seed, tokens, 4, k)
    out, live = layer.run(pool, x, chosen)
    assert_matches_the_reference(layer, x, chosen, out)
    assert live == tokens * k * ffn


@at_most(8)
@pytest.mark.parametrize("shape", SHAPES)
@given(seed=seeds, tokens=st.integers(1, 11))
def test_formats_without_rows_are_computed_in_full_behind_every_activation(
    pool: _kernels.ThreadPool, shape: tuple[_kernels.Activation, bool], seed: int, tokens: int
) -> None:
    quants = [quant for quant in _kernels.formats() if not _kernels.has_rows(quant)]
    gate, up, down = np.random.default_rng(seed).choice(quants, 3).tolist()
    layer = Layer.random((gate, up, down), 256, 256, 2, seed, *shape)
    assert {section.layout for section in layer.sections} == {"tiles"}
    x, chosen = normal(seed + 9, tokens, 256), choose(seed, tokens, 2, 1)
    out, live = layer.run(pool, x, chosen)
    assert_matches_the_reference(layer, x, chosen, out)
    assert live == tokens * 256


@given(seed=seeds, quants=st.tuples(formats, formats, formats), shape=dense, tokens=st.integers(1, 11))
def test_gate_up_and_down_have_a_format_each(
    pools: list[_kernels.ThreadPool],
    seed: int,
    quants: _kernels.FfnQuants,
    shape: tuple[_kernels.Activation, bool],
    tokens: int,
) -> None:
    layer = Layer.random(quants, 256, 512, 3, seed, *shape)
    x, chosen = normal(seed + 9, tokens, 256), choose(seed, tokens, 3, 2)
    out, _ = layer.run(pools[0], x, chosen)
    assert_matches_the_reference(layer, x, chosen, out)
    alone = np.vstack([layer.run(pools[1], x[t : t + 1], chosen[t : t + 1])[0] for t in range(tokens)])
    np.testing.assert_array_equal(bits(out), bits(alone))


@at_most(8)
@given(
    seed=seeds,
    hidden=sizes,
    ffn=tiles,
    shape=dense,
    tokens=st.integers(1, 45),
    k=st.integers(1, 3),
    make=st.sampled_from([normal, uneven]),
)
def test_a_token_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(
    pools: list[_kernels.ThreadPool],
    quant: _kernels.Quant,
    seed: int,
    hidden: int,
    ffn: int,
    shape: tuple[_kernels.Activation, bool],
    tokens: int,
    k: int,
    make: Make,
) -> None:
    ffn = neurons(quant, ffn)
    layer = Layer.random(quant, hidden, ffn, 4, seed, *shape)
    x, chosen = make(seed + 9, tokens, hidden), choose(seed, tokens, 4, k)
    together = [layer.run(pool, x, chosen) for pool in pools]
    alone = [layer.run(pools[1], x[t : t + 1], chosen[t : t + 1]) for t in range(tokens)]
    for out, live in together:
        np.testing.assert_array_equal(bits(out), bits(np.vstack([o for o, _ in alone])))
        assert live == sum(n for _, n in alone) == tokens * k * ffn


@pytest.mark.parametrize(("quant", "tokens"), [("f32", 150), ("q8_0", 400)])
def test_a_prompt_in_several_waves_has_the_bits_of_its_tokens_alone(
    pools: list[_kernels.ThreadPool], quant: _kernels.Quant, tokens: int
) -> None:
    ffn = 16384  # neurons of so many tokens take more than a wave may
    layer = Layer.random(quant, 32, ffn, 2, 0, "silu")
    x, chosen = normal(1, tokens, 32), choose(2, tokens, 2, 1)
    out, live = layer.run(pools[2], x, chosen)
    assert live == tokens * ffn
    for t in (0, tokens // 2, tokens - 1):
        alone, _ = layer.run(pools[0], x[t : t + 1], chosen[t : t + 1])
        np.testing.assert_array_equal(bits(out[t : t + 1]), bits(alone))


@pytest.mark.parametrize("activation", PLAIN)
def test_activations_are_right_to_a_millionth(pool: _kernels.ThreadPool, activation: _kernels.Activation) -> None:
    identity = np.eye(32, dtype=np.float32)
    layer = Layer.of("f32", [(identity,) * 3], activation, gated=False)
    grid = np.linspace(-30, 30, 30 * 256 + 1).astype(np.float32)
    some = np.array([0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 88, -88, 1e4, -1e4, 1e18, -1e18], np.float32)
    x = np.concatenate([grid, some, normal(0, 3 + 12)])
    x = np.concatenate([x, normal(1, -len(x) % 32)]).reshape(-1, 32)
    out, _ = layer.run(pool, x, np.zeros((len(x), 1), np.int64))
    expected = numpy_reference.activated(activation, x.astype(np.float64))
    # far out in its tail a result is e^-y, whose error is that of y; none is seen beside x there
    assert (np.abs(out - expected) <= 1e-6 * np.abs(expected) + 3e-10 * np.minimum(np.abs(x), 14)).all()


@pytest.mark.parametrize(("activation", "gated"), [("clamped_swiglu", True), ("relu", True), ("gelu", False)])
def test_biases_and_the_clamped_activation_are_those_of_their_formulae(
    pools: list[_kernels.ThreadPool], activation: _kernels.Activation, gated: bool
) -> None:
    hidden, ffn, tokens, limit, alpha = 64, 96, 41, 0.9, 1.7
    sections = _kernels.record_sections(("f32",) * 3, hidden, ffn, activation, gated, True)
    gate, up, down = normal(0, 3, ffn, hidden) / 8
    gate_bias, up_bias, down_bias = normal(1, ffn), normal(2, ffn), normal(3, hidden)
    parts = [gate, up, down.T, gate_bias[None], up_bias[None], down_bias[None]]
    if not gated:
        parts = [parts[1], parts[2], *parts[4:]]
    slots = np.full((1, sections[-1].offset + sections[-1].nbytes), 0xEE, np.uint8)
    for section, part in zip(sections, parts, strict=True):
        packed = _kernels.pack("f32", section.layout, np.ascontiguousarray(part))
        slots[0, section.offset : section.offset + section.nbytes] = packed
    x = normal(4, tokens, hidden)
    wide = x.astype(np.float64)
    g, u = wide @ gate.T + gate_bias, wide @ up.T + up_bias
    if activation == "clamped_swiglu":
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        neurons = (u + 1) * g / (1 + np.exp(-alpha * g))
    else:
        neurons = numpy_reference.activated(activation, g) * u if gated else numpy_reference.activated(activation, u)
    outs = []
    for pool in pools:
        for size in (tokens, 1):
            out = np.empty((tokens, hidden), np.float32)
            for t in range(0, tokens, size):
                offsets, pairs = np.array([0, size], np.int32), np.arange(size, dtype=np.int32)
                one = np.zeros(1, np.int32)
                shape = (("f32",) * 3, hidden, ffn, activation, gated)
                some = np.empty((size, hidden), np.float32)
                _kernels.experts(pool, *shape, x[t : t + size], slots, one, offsets, pairs, 1, some, True, limit, alpha)
                out[t : t + size] = some
            outs.append(out)
    np.testing.assert_allclose(outs[0], neurons @ down.astype(np.float64) + down_bias, rtol=1e-4, atol=1e-5)
    for out in outs:
        np.testing.assert_array_equal(bits(out), bits(outs[0]))


@pytest.mark.parametrize("shape", DENSE)
def test_an_expert_without_pairs_and_a_call_without_experts_do_nothing(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, shape: tuple[_kernels.Activation, bool]
) -> None:
    layer, x = Layer.random(quant, 64, 32, 2, 0, *shape), normal(1, 1, 64)
    expected, live = layer.run(pool, x, THE_ONE)
    out = np.full((1, 64), 7, np.float32)
    for slot_ids, offsets, pairs, n in (([], [0], [], 0), ([1, 0, 1], [0, 0, 1, 1], [0], live)):
        arrays = [np.array(a, np.int32) for a in (slot_ids, offsets, pairs)]
        assert _kernels.experts(pool, *layer.shape, x, layer.slots, *arrays, 1, out) == n
        np.testing.assert_array_equal(out, expected if n else np.full((1, 64), 7))


def test_rows_without_a_pair_stay_as_they_were(pool: _kernels.ThreadPool) -> None:
    layer = Layer.random("q4_0", 64, 32, 1, 0, "silu")
    out = np.full((6, 64), 7, np.float32)
    ids, offsets, pairs = (np.array(a, np.int32) for a in ([0], [0, 1], [3]))
    _kernels.experts(pool, *layer.shape, normal(1, 3, 64), layer.slots, ids, offsets, pairs, 2, out)
    assert (np.delete(out, 3, axis=0) == 7).all()
    assert (out[3] != 7).all()


@pytest.mark.parametrize("shape", DENSE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_stays_so_and_leaves_the_others_alone(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, bad: float, shape: tuple[_kernels.Activation, bool]
) -> None:
    layer = Layer.random(quant, 64, 64, 2, 0, *shape)
    x, chosen = normal(1, 5, 64), choose(0, 5, 2, 2)
    clean, _ = layer.run(pool, x, chosen)
    x[2, 40] = bad
    out, _ = layer.run(pool, x, chosen)
    assert not np.isfinite(out[4:6]).any()
    others = np.arange(10) // 2 != 2
    np.testing.assert_array_equal(bits(out[others]), bits(clean[others]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_a_weight_is_not_lost(
    pool: _kernels.ThreadPool, quant: _kernels.Quant, bad: float
) -> None:
    gate, up, down = np.abs(normal(0, 3, 96, 160))
    for tokens in (1, 3):
        x, chosen = np.abs(normal(1, tokens, 160)), np.zeros((tokens, 1), np.int64)
        for w in (gate, up, down):
            kept, w[70, 33] = w[70, 33], bad
            out, _ = Layer.of(quant, [(gate, up, down)], "silu").run(pool, x, chosen)
            w[70, 33] = kept
            assert not np.isfinite(out if w is not down else out[:, 33]).any()
