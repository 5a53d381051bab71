"""Layers without Python between them: the bits of the calls one by one, and where they stop."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_experts import Layer
from random_inputs import F32, bits, normal, seeds
from test_kernel_arguments import ATTENTION_LAYER, FFN, FORWARD, POOL, RECORD_BYTES, SCORING, kv_layer, u8, zeros

from smallthinker import _kernels

LAYERS, EXPERTS, K, D, WIDTH = 3, 8, 2, 64, 32
QUANT: _kernels.Quant = "q4_0"
DONE, ROUTED, GUESSED = _kernels.Forward.DONE, _kernels.Forward.ROUTED, _kernels.Forward.GUESSED
GUESSED_BEFORE = _kernels.Forward.GUESSED_BEFORE
NO_GUESS = ((-1,) * LAYERS, (-1,) * LAYERS)


def norm(weight: F32) -> _kernels.Norm:
    return _kernels.Norm(len(weight), 1e-6, weight)


class Network(NamedTuple):
    """What layers may differ in. Without a router all of k experts are slices that every token uses."""

    experts: int = EXPERTS
    k: int = K
    width: int = WIDTH
    activation: _kernels.Activation = "relu"
    gated: bool = True
    has_router: bool = True
    mixes_first: bool = False
    has_shared: bool = False


ALIKE = (Network(),) * LAYERS
LATE = (Network(mixes_first=True), Network(has_shared=True), Network(mixes_first=True, has_shared=True))
MIXED = (Network(3, 3, 64, "silu", has_router=False), Network(), Network(4, 1, 96, "relu2", False))


class Model:
    """Random weights and a step of some tokens of one sequence, with every expert of a layer in a slot."""

    def __init__(
        self, seed: int, tokens: int = 1, quant: _kernels.Quant = QUANT, networks: tuple[Network, ...] = ALIKE
    ) -> None:
        rng = np.random.default_rng(seed)

        def tiles(rows: int, cols: int, quant: _kernels.Quant = QUANT) -> Any:
            return _kernels.pack(quant, "tiles", rng.standard_normal((rows, cols), np.float32))

        self.mixers = [
            _kernels.AttentionLayer(
                **ATTENTION_LAYER
                | {"input_norm": norm(normal(seed, D)), "post_norm": norm(normal(seed + 1, D))}
                | {"q": tiles(32, D), "k": tiles(16, D), "v": tiles(16, D), "o": tiles(D, 32)}
            )
            for _ in range(LAYERS)
        ]
        self.shared = [
            (tiles(64, D), tiles(64, D), tiles(D, 64), tiles(1, D)) if n.has_shared else None for n in networks
        ]
        ffns = [
            _kernels.Ffn(
                (quant,) * 3, D, n.width, n.activation, n.gated, n.experts, n.k,
                _kernels.Scoring(n.experts, n.k, "sigmoid") if n.has_router else None,
                tiles(n.experts, D, "f32") if n.has_router else None, n.mixes_first,
                None if shared is None else _kernels.SharedFfn((QUANT,) * 4, D, 64, "silu", *shared),
            )
            for n, shared in zip(networks, self.shared, strict=True)
        ]  # fmt: skip
        of_layers = [
            Layer.random(quant, D, n.width, n.experts, seed + 3 + i, n.activation, n.gated).slots
            for i, n in enumerate(networks)
        ]
        record_bytes = max(slots.shape[1] for slots in of_layers)
        slots = np.concatenate([np.pad(slots, ((0, 0), (0, record_bytes - slots.shape[1]))) for slots in of_layers])
        self.forward = _kernels.Forward(POOL, self.mixers, ffns, slots)
        self.networks = networks
        self.first_records = np.cumsum([0] + [n.experts for n in networks]).tolist()
        self.slot_of = np.arange(self.first_records[-1], dtype=np.int32)
        k = max(n.k for n in networks)
        self.x, self.normed = normal(seed + 2, tokens, D), zeros(tokens, D)
        self.weights, self.ids = zeros(tokens, k), zeros(tokens, k, dtype=np.int32)
        self.caches = [kv_layer() for _ in range(LAYERS)]

    def run(self, first: int = 0, last: int = LAYERS, ahead: tuple[tuple[int, ...], ...] = NO_GUESS) -> Any:
        tokens = len(self.x)
        return self.forward.run(
            first, last, self.x, self.normed, self.ids, self.weights, self.slot_of, np.array(ahead, np.int32),
            [self.caches], [0], [tokens], zeros(tokens, 4), zeros(tokens, 4),
        )  # fmt: skip

    def mix(self, layer: int) -> None:
        tokens = len(self.x)
        angles = zeros(tokens, 4)
        self.mixers[layer].forward(self.x, [self.caches[layer]], [0], [tokens], angles, angles, self.normed)

    def layer_by_calls(self, layer: int) -> tuple[list[int], list[list[int]], int]:
        """The layer by calls of its own, in place, each expert apart and the last one first."""
        at, why, _, _, (experts, pairs), _ = self.run(layer, layer)
        assert (at, why) == (layer, ROUTED)
        if not self.networks[layer].mixes_first:
            self.mix(layer)
        self.forward.share(layer, self.normed)
        live = 0
        for expert, of_expert in reversed(list(zip(experts, pairs, strict=True))):
            live += self.forward.compute(layer, self.normed, [of_expert], [self.first_records[layer] + expert])
        k = self.networks[layer].k
        self.forward.combine(layer, self.x, self.weights.ravel()[: len(self.x) * k].reshape(-1, k))
        return experts, pairs, live


@given(st.sampled_from(["q4_0", "q8_0", "f16"]), st.integers(1, 9), seeds)
def test_layers_at_once_give_the_bits_of_one_by_one(quant: _kernels.Quant, tokens: int, seed: int) -> None:
    at_once, apart = Model(seed, tokens, quant), Model(seed, tokens, quant)
    steps = [apart.layer_by_calls(layer) for layer in range(LAYERS)]
    at, why, live, used, route, _ = at_once.run()
    assert (at, why, live) == (LAYERS, DONE, sum(live for *_, live in steps)) and route == ([], [])
    assert np.array_equal(bits(at_once.x), bits(apart.x))
    assert used == [(experts, list(map(len, pairs)), list(chain.from_iterable(pairs))) for experts, pairs, _ in steps]


@given(st.sampled_from(["q4_0", "f16"]), st.integers(1, 16), seeds)
def test_layers_that_differ_and_one_without_a_router_give_the_same_bits_at_once(
    quant: _kernels.Quant, tokens: int, seed: int
) -> None:
    at_once, apart = Model(seed, tokens, quant, MIXED), Model(seed, tokens, quant, MIXED)
    steps = [apart.layer_by_calls(layer) for layer in range(LAYERS)]
    assert steps[0] == ([0, 1, 2], [list(range(slice, 3 * tokens, 3)) for slice in range(3)], tokens * 3 * 64)
    assert steps[2][2] == tokens * 96
    at, why, live, used, _, _ = at_once.run()
    assert (at, why, live) == (LAYERS, DONE, sum(live for *_, live in steps))
    assert np.array_equal(bits(at_once.x), bits(apart.x))
    assert used == [(experts, list(map(len, pairs)), list(chain.from_iterable(pairs))) for experts, pairs, _ in steps]


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_layer_without_a_router_uses_all_slices_with_weight_one_and_stops_for_those_missing(tokens: int) -> None:
    model = Model(4, tokens, networks=MIXED[1:] + MIXED[:1])
    x = model.x.copy()
    assert model.forward.guess(0, x, [2]) == model.forward.guess(-1, x, [2]) == [([0, 1, 2], [0, 0, 0])]
    model.slot_of[model.first_records[2] + 1] = -1
    at, why, _, _, _, guess = model.run(ahead=((-1,) * 3, (2, -1, -1)))
    assert (at, why, guess) == (0, GUESSED, ([0, 1, 2], [0, 0, 0]))
    at, why, _, used, (experts, pairs), _ = model.run(first=1)
    assert (at, why, len(used)) == (2, ROUTED, 1)
    assert (experts, pairs) == ([0, 1, 2], [list(range(slice, 3 * tokens, 3)) for slice in range(3)])
    assert model.ids.tolist() == [[0, 1, 2]] * tokens and model.weights.tolist() == [[1, 1, 1]] * tokens


@given(st.integers(2, 9), seeds)
def test_a_token_gets_the_bits_that_it_has_alone(tokens: int, seed: int) -> None:
    together = Model(seed, tokens)
    experts, pairs, _ = together.layer_by_calls(0)
    for t in range(tokens):
        alone = Model(seed, tokens)
        alone.x = alone.x[t : t + 1].copy()
        alone.normed, alone.weights, alone.ids = zeros(1, D), zeros(1, K), zeros(1, K, dtype=np.int32)
        alone.run(last=0)
        assert alone.ids[0].tolist() == together.ids[t].tolist()
        assert np.array_equal(bits(alone.weights[0]), bits(together.weights[t]))
    chosen = together.ids.ravel().tolist()
    assert experts == sorted(set(chosen))
    assert all(chosen[pair] == expert for expert, of in zip(experts, pairs, strict=True) for pair in of)
    assert sorted(pair for of in pairs for pair in of) == list(range(tokens * K))


def test_what_experts_give_may_be_normed_and_scaled_before_it_is_added() -> None:
    how = norm(normal(7, D))
    ffns = {
        is_plain: _kernels.Ffn(
            (QUANT,) * 3, D, WIDTH, "relu", True, 2, 2, None, None,
            residual=None if is_plain else _kernels.Residual(how, 0.5, 3.0),
        )
        for is_plain in (True, False)
    }  # fmt: skip
    slots, x, weights = Layer.random(QUANT, D, WIDTH, 2, 5).slots, normal(8, 3, D), normal(9, 3, 2)
    mixers = [_kernels.AttentionLayer(**ATTENTION_LAYER)]
    given = {}
    for is_plain, ffn in ffns.items():
        forward = _kernels.Forward(POOL, mixers, [ffn], slots)
        forward.compute(0, x, [[0, 2, 4], [1, 3, 5]], [0, 1])
        given[is_plain] = zeros(3, D) if is_plain else x.copy()
        forward.combine(0, given[is_plain], weights)
    _kernels.norm(how, given[True], given[True])
    expected = (x + np.float32(0.5) * given[True]) * np.float32(3)
    np.testing.assert_array_equal(bits(given[False]), bits(expected))


@given(st.integers(1, 9), seeds)
def test_layers_that_mix_first_and_shared_networks_give_the_same_bits_at_once(tokens: int, seed: int) -> None:
    at_once, apart = Model(seed, tokens, networks=LATE), Model(seed, tokens, networks=LATE)
    steps = [apart.layer_by_calls(layer) for layer in range(LAYERS)]
    at, why, live, used, *_ = at_once.run()
    assert (at, why, live) == (LAYERS, DONE, sum(live for *_, live in steps))
    assert np.array_equal(bits(at_once.x), bits(apart.x))
    assert used == [(experts, list(map(len, pairs)), list(chain.from_iterable(pairs))) for experts, pairs, _ in steps]


def test_a_shared_network_is_added_last() -> None:
    networks = (Network(), Network(has_shared=True), Network())
    model, without = Model(5, 3, networks=networks), Model(5, 3, networks=networks)
    for m in (model, without):
        m.run(last=1)
        m.mix(1)
    *_, (_, pairs), _ = model.run(1, 1)
    model.forward.compute(1, model.normed, pairs, [0] * len(pairs))
    model.forward.share(1, model.normed)
    gate, up, down, output_gate = model.shared[1]

    def product(data: Any, rows: int, x: np.ndarray) -> np.ndarray:
        out = zeros(len(x), rows)
        _kernels.linear(POOL, QUANT, data, rows, x.shape[1], x, out)
        return out

    neurons = product(gate, 64, model.normed)
    neurons = neurons / (1 + np.exp(-neurons)) * product(up, 64, model.normed)
    share = product(down, D, neurons) / (1 + np.exp(-product(output_gate, 1, model.normed)))
    before, weights = model.x.copy(), np.zeros_like(model.weights)
    model.forward.combine(1, model.x, weights)
    np.testing.assert_allclose(model.x - before, share, atol=2e-2 * float(np.abs(share).max()))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_layer_that_mixes_first_stops_with_its_attention_added(tokens: int) -> None:
    model, apart = Model(6, tokens, networks=LATE), Model(6, tokens, networks=LATE)
    for layer in range(2):
        apart.layer_by_calls(layer)
    apart.mix(2)
    at, why, _, used, route, _ = model.run(last=2)
    assert (at, why, len(used)) == (2, ROUTED, 2)
    assert np.array_equal(bits(model.x), bits(apart.x)) and np.array_equal(bits(model.normed), bits(apart.normed))
    again = Model(6, tokens, networks=LATE)
    again.slot_of[again.first_records[2] + route[0][0]] = -1
    assert again.run()[:2] == (2, ROUTED)
    assert np.array_equal(bits(again.x), bits(apart.x)) and np.array_equal(bits(again.weights), bits(model.weights))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_missing_guess_stops_a_layer_that_mixes_first_before_anything_is_computed(tokens: int) -> None:
    model, apart = Model(7, tokens, networks=LATE), Model(7, tokens, networks=LATE)
    for layer in range(2):
        apart.layer_by_calls(layer)
    (guess,) = apart.forward.guess(2, apart.x, [2])
    model.slot_of[model.first_records[2] + guess[0][-1]] = -1
    own = ((0, -1, 2), (-1,) * LAYERS)
    at, why, _, used, route, guessed = model.run(ahead=own)
    assert (at, why, len(used), guessed) == (2, GUESSED_BEFORE, 2, guess) and route == ([], [])
    assert np.array_equal(bits(model.x), bits(apart.x))
    apart.layer_by_calls(2)
    whole = Model(7, tokens, networks=LATE)
    assert whole.run(ahead=own)[:2] == (LAYERS, DONE)
    assert np.array_equal(bits(whole.x), bits(apart.x))


def test_a_guess_for_a_layer_that_mixes_first_reads_the_norm_of_the_state() -> None:
    model = Model(8, 4, networks=LATE)
    x = normal(9, 4, D)
    (by_router,) = model.forward.guess(0, x, [0])
    (scaled,) = model.forward.guess(0, 7 * x, [0])
    assert by_router == scaled  # of a norm


def test_a_predictor_says_what_its_matrix_makes_of_the_state_at_mean_square_1_and_its_offset() -> None:
    x, matrix, offset = 5 * normal(3, 6, 64), normal(1, 8, 64), normal(2, 8)
    mixers, slots = [_kernels.AttentionLayer(**ATTENTION_LAYER)] * 2, zeros(3, RECORD_BYTES, dtype=u8)
    predictors = {(1, 1): (_kernels.pack("q8_0", "tiles", matrix), offset)}
    forward = _kernels.Forward(POOL, mixers, [FFN] * 2, slots, predictors)
    logits = x / np.sqrt(np.mean(x * x, 1, keepdims=True)) @ matrix.T + offset
    for row, of_row in zip(x, logits, strict=True):
        assert forward.guess(1, row[None], [1]) == [(np.argsort(-of_row)[:2].tolist(), [0, 1])]
    assert forward.guess(0, x, [1]) != forward.guess(1, x, [1])  # of another source: the router
    wrong = {(1, 1): (predictors[1, 1][0], zeros(7))}
    with pytest.raises(ValueError, match="predictors"):
        _kernels.Forward(POOL, mixers, [FFN] * 2, slots, wrong)


def test_it_goes_no_further_than_it_is_told() -> None:
    model, apart = Model(1), Model(1)
    apart.layer_by_calls(0)
    assert model.run(last=1)[:2] == (1, ROUTED)
    apart.layer_by_calls(1)
    assert model.run(first=1, last=2)[:2] == (2, ROUTED)
    assert np.array_equal(bits(model.x), bits(apart.x))


def test_a_missing_expert_stops_it_with_the_route_and_nothing_computed() -> None:
    model, apart = Model(2), Model(2)
    apart.layer_by_calls(0)
    *_, (experts, _), _ = apart.run(1, 1)
    model.slot_of[EXPERTS + experts[1]] = -1
    at, why, _, used, route, _ = model.run()
    assert (at, why, len(used)) == (1, ROUTED, 1)
    assert np.array_equal(bits(model.x), bits(apart.x))
    assert route == (experts, [[0], [1]]) and np.array_equal(bits(model.weights), bits(apart.weights))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_missing_guess_stops_it_once_attention_has_been_added(tokens: int) -> None:
    model, apart = Model(3, tokens), Model(3, tokens)
    *_, route, _ = apart.run(last=0)
    apart.mix(0)
    (guess,) = apart.forward.guess(0, apart.x, [2])
    model.slot_of[2 * EXPERTS + guess[0][0]] = -1
    at, why, _, used, found, guessed = model.run(ahead=((-1,) * 3, (2, -1, -1)))
    assert (at, why, len(used)) == (0, GUESSED, 1) and found == route and guessed == guess
    assert guess[1] == sorted(guess[1])
    assert np.array_equal(bits(model.x), bits(apart.x)) and np.array_equal(bits(model.normed), bits(apart.normed))


def test_parts_of_different_models_are_refused() -> None:
    mixers, slots = [_kernels.AttentionLayer(**ATTENTION_LAYER)] * 2, zeros(3, RECORD_BYTES, dtype=u8)
    with pytest.raises(ValueError, match="ffns: expected as many as mixers, at least one, 2, found 1"):
        _kernels.Forward(POOL, mixers, [FFN], slots)
    predictors = {(0, 1): (zeros(8 * 64 // 32 * 34, dtype=u8), zeros(8))}
    slices = _kernels.Ffn(("q4_0",) * 3, 64, 32, "relu", True, 8, 8, None, None)
    with pytest.raises(ValueError, match="predictors: layer 1 has no router"):
        _kernels.Forward(POOL, mixers, [FFN, slices], slots, predictors)
    wider = _kernels.Ffn(("q4_0",) * 3, 96, 32, "relu", True, 8, 2, SCORING, zeros(16 * 96, dtype=np.float32).view(u8))
    with pytest.raises(ValueError, match="expected states 64 wide"):
        _kernels.Forward(POOL, mixers, [wider] * 2, zeros(3, 1 << 16, dtype=u8))


def test_what_is_released_is_computed_anew() -> None:
    pairs = [[0, 2, 4], [1, 3, 5]]
    FORWARD.compute(0, zeros(3, 64), pairs, [2, 0])
    FORWARD.release()
    with pytest.raises(ValueError, match="x: expected at most"):
        FORWARD.combine(0, zeros(3, 64), zeros(3, 2))
    FORWARD.compute(0, zeros(3, 64), pairs, [2, 0])
    FORWARD.combine(0, zeros(3, 64), zeros(3, 2))
