"""One token through layers without Python between them: the bits of the calls one by one, and where it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_inputs import bits, normal
from test_expert_kernels import Layer
from test_kernel_arguments import ATTENTION_LAYER, POOL, call, kv_layer, zeros

from smallthinker import _kernels

LAYERS, EXPERTS, K, D, FFN = 3, 8, 2, 64, 32
QUANT: _kernels.Quant = "q4_0"


class Model:
    """Random weights, with every expert of a layer in a slot."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def tiles(rows: int, cols: int, quant: _kernels.Quant = QUANT) -> Any:
            return _kernels.pack(quant, "tiles", rng.standard_normal((rows, cols), np.float32))

        routers = [tiles(EXPERTS, D, "f32") for _ in range(LAYERS)]
        self.router = _kernels.TokenRouter(POOL, routers, EXPERTS, D, K, "sigmoid")
        self.attention = [
            _kernels.AttentionLayer(
                **ATTENTION_LAYER
                | {"input_norm": normal(seed, D), "post_norm": normal(seed + 1, D)}
                | {"q": tiles(32, D), "k": tiles(16, D), "v": tiles(16, D), "o": tiles(D, 32)}
            )
            for _ in range(LAYERS)
        ]
        slots = Layer.random(QUANT, D, FFN, LAYERS * EXPERTS, seed + 3).slots
        self.experts = _kernels.TokenExperts(POOL, QUANT, D, FFN, K, slots)
        self.layers = _kernels.TokenLayers(self.router, self.attention, self.experts)
        self.slots = np.arange(LAYERS * EXPERTS, dtype=np.int32)
        self.x, self.normed, self.weights = normal(seed + 2, 1, D), zeros(1, D), zeros(1, K)
        self.ids = np.full((LAYERS + 1, K), -1, np.int32)

    def run(self, ahead: list[int], first: int = 0, last: int = LAYERS) -> tuple[int, int, int]:
        return self.layers.run(
            first, last, self.x, self.normed, self.weights, self.slots, np.array(ahead, np.int32),
            [kv_layer() for _ in range(LAYERS)], 0, zeros(1, 4), zeros(1, 4), self.ids,
        )  # fmt: skip

    def step(self, layer: int, x: Any) -> tuple[list[int], int]:
        """The layer by calls of its own, in place."""
        weights, normed = zeros(1, K), zeros(1, D)
        ids = self.router.route(layer, x, weights)
        self.attention[layer].forward(x, [kv_layer()], [0], [1], zeros(1, 4), zeros(1, 4), normed)
        return ids, self.experts.add(x, normed, [EXPERTS * layer + expert for expert in ids], weights)


def test_layers_at_once_give_the_bits_of_one_by_one() -> None:
    model = Model(0)
    x = model.x.copy()
    steps = [model.step(layer, x) for layer in range(LAYERS)]
    assert model.run([1, 2, -1]) == (LAYERS, model.layers.BEGIN, sum(live for _, live in steps))
    assert np.array_equal(bits(model.x), bits(x))
    assert model.ids[:LAYERS].tolist() == [ids for ids, _ in steps]
    assert steps[0][1] > 0


def test_it_goes_no_further_than_it_is_told() -> None:
    model = Model(1)
    x = model.x.copy()
    model.step(0, x)
    assert model.run([-1] * LAYERS, last=1)[:2] == (1, model.layers.BEGIN)
    model.step(1, x)
    assert model.run([-1] * LAYERS, first=1, last=2)[:2] == (2, model.layers.BEGIN)
    assert np.array_equal(bits(model.x), bits(x))


def test_a_missing_expert_stops_it_with_the_route_and_nothing_computed() -> None:
    model = Model(2)
    x = model.x.copy()
    model.step(0, x)
    weights = zeros(1, K)
    ids = model.router.route(1, x, weights)
    model.slots[EXPERTS + ids[1]] = -1
    assert model.run([-1] * LAYERS)[:2] == (1, model.layers.ROUTED)
    assert np.array_equal(bits(model.x), bits(x))
    assert model.ids[1].tolist() == ids and np.array_equal(bits(model.weights), bits(weights))


@pytest.mark.parametrize("told", [True, False])
def test_a_missing_guess_stops_it_once_attention_has_been_added(told: bool) -> None:
    model = Model(3)
    x, weights, normed = model.x.copy(), zeros(1, K), zeros(1, D)
    ids = model.router.route(0, x, weights)
    model.attention[0].forward(x, [kv_layer()], [0], [1], zeros(1, 4), zeros(1, 4), normed)
    if not told:
        (guess,) = model.router.guess(0, x, [2])
        model.slots[2 * EXPERTS + guess[0]] = -1
    assert model.run([-2 if told else 2, -1, -1])[:2] == (0, model.layers.ATTENDED)
    assert np.array_equal(bits(model.x), bits(x)) and np.array_equal(bits(model.normed), bits(normed))
    assert model.ids[0].tolist() == ids
    assert told or model.ids[LAYERS].tolist() == guess


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": -1}, "first, last: expected 0 to 2"),
        ({"last": 3}, "first, last: expected 0 to 2"),
        ({"first": 1, "last": 0}, "first, last: expected 0 to 2"),
        ({"caches": []}, "caches: expected 2, found 0"),
        ({"caches": [kv_layer(), None]}, r"caches\[1\]: expected a KvLayer, found None"),
        ({"caches": [kv_layer(heads=1)] * 2}, r"caches\[0\]: expected 2 heads of 8, found 1 of 8"),
        ({"start": -1}, "start"),
        ({"ahead": np.array([0, 2], np.int32)}, r"ahead\[1\]: expected less than 2, found 2"),
        ({"slots": np.full(16, 3, np.int32)}, r"slots\[\d+\]: expected 0 to 2, found 3"),
    ],
)
def test_what_is_not_there_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call("token_layers.run", **wrong)


def test_parts_of_different_models_are_refused() -> None:
    model, other = Model(4), _kernels.TokenExperts(POOL, QUANT, D, FFN, 1, Layer.random(QUANT, D, FFN, 1, 0).slots)
    with pytest.raises(ValueError, match="attention: expected 3 layers, found 2"):
        _kernels.TokenLayers(model.router, model.attention[:2], model.experts)
    with pytest.raises(ValueError, match="experts: expected 2 of a token"):
        _kernels.TokenLayers(model.router, model.attention, other)
