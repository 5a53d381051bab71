"""The routes that the forward pass takes, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import behind_attention, make_store, tiny_config

from smallthinker import reference
from smallthinker.arithmetic import Route
from smallthinker.engine import Engine
from smallthinker.forward import Observers


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_routes_are_those_of_the_reference(softmax: bool, is_late: bool, tmp_path: Path) -> None:
    config = tiny_config(moe_primary_router_apply_softmax=softmax, moe_num_active_primary_experts=3)
    config = behind_attention(config) if is_late else config
    store, model = make_store(config, tmp_path, "f32")
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def routed(layer: int, x: np.ndarray, route: Route) -> None:
        seen.append((route.ids.copy(), route.weights.copy()))
        with torch.no_grad():
            _, weights, ids = reference.route(
                torch.from_numpy(x), config.layers[layer].router, lambda role: model.weight(f"layers.{layer}.{role}")
            )
        assert np.array_equal(route.ids, ids.numpy())
        np.testing.assert_allclose(route.weights, weights.numpy(), rtol=1e-5)

    prompt = np.random.default_rng(0).integers(0, 256, 20).tolist()
    with Engine(store) as engine:
        engine.observe(Observers(routed=routed))
        engine.prefill(prompt)
        together, layers = list(seen), config.num_layers
        seen.clear()
        engine.forget()
        for token in range(len(prompt)):
            engine.prefill(prompt[: token + 1])
    for layer, (ids, weights) in enumerate(together):
        assert np.array_equal(ids, np.concatenate([of[0] for of in seen[layer::layers]]))
        assert np.array_equal(weights, np.concatenate([of[1] for of in seen[layer::layers]]))
