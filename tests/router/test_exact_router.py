from __future__ import annotations

import numpy as np
import pytest
import torch
from models import random_reference, tiny_config

from smallthinker import _kernels
from smallthinker.router.exact import ExactRouter
from smallthinker.router.planner import group_by_expert


@pytest.mark.parametrize("softmax", [False, True])
def test_routes_are_those_of_the_reference(softmax: bool) -> None:
    config = tiny_config(moe_primary_router_apply_softmax=softmax, moe_num_active_primary_experts=3)
    moe = random_reference(config).model.layers[0].block_sparse_moe
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    with torch.no_grad():
        _, weights, ids = moe.route(torch.from_numpy(x))
    packed = _kernels.pack("f32", "tiles", moe.primary_router.weight.detach().numpy())
    router = ExactRouter(_kernels.ThreadPool(1), [packed], 64, 8, 3, config.gating)
    route = router.route(0, x)
    assert np.array_equal(route.ids, ids.numpy())
    np.testing.assert_allclose(route.weights, weights.numpy(), rtol=1e-5)
    of_token = np.empty((1, 3), np.float32)
    for t in range(len(x)):
        ids = route.ids[t].tolist()
        assert router.route_token(0, x[t : t + 1], of_token) == ids
        assert router.guess(0, x[t : t + 1], [0, 0]) == [ids] * 2
        assert np.array_equal(of_token[0], route.weights[t])
    of_tokens = np.empty_like(route.weights)
    experts, pairs = router.route_tokens(0, x, of_tokens)
    assert np.array_equal(of_tokens, route.weights)
    assert [(e, p) for e, p in zip(experts, pairs, strict=True)] == group_by_expert(route.ids)
    ((guessed, ranks),) = router.guess_tokens(0, x, [0])
    best = {expert: int(np.argmax((route.ids == expert).any(axis=0))) for expert in guessed}
    assert sorted(guessed) == experts
    assert dict(zip(guessed, ranks, strict=True)) == best and ranks == sorted(ranks)
