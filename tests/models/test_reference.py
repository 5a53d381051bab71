from __future__ import annotations

import pytest
import torch
from tiny_models import DENSE_ATTENTION, HYBRID_ATTENTION, random_reference, tiny_config

from smallthinker.reference import feed_forward, route


@pytest.mark.parametrize("kind", [DENSE_ATTENTION, HYBRID_ATTENTION], ids=["4b kind", "21b kind"])
def test_cached_steps_give_the_logits_of_the_full_sequence(kind: dict) -> None:
    model = random_reference(tiny_config(**kind))
    tokens = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, _ = model(tokens)
        logits, cache = model(tokens[:, :7])
        steps = [logits]
        for t in range(7, 30):
            logits, cache = model(tokens[:, t : t + 1], cache)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-4, atol=1e-4)


def test_experts_equal_the_sum_written_out() -> None:
    """The grouped computation against the formula, token by token."""
    model = random_reference(tiny_config())
    ffn = model.model.layers[0].ffn
    assert ffn is not None and ffn.router is not None

    def of(role: str) -> torch.Tensor:
        return model.weight(f"layers.0.{role}")

    m, r = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, weights, ids = route(r, ffn.router, of)
        found, _ = feed_forward(m[None], ffn, of, r[None], m[None])
        for token in range(9):
            expected = torch.zeros(64)
            for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
                gate = torch.relu(of(f"gate.{expert}") @ m[token])
                expected += weight * (of(f"down.{expert}") @ (gate * (of(f"up.{expert}") @ m[token])))
            torch.testing.assert_close(found[0, token], expected, rtol=1e-4, atol=1e-5)


def test_router_weights_are_normalised_over_the_chosen_experts() -> None:
    for softmax in (False, True):
        model = random_reference(tiny_config(moe_primary_router_apply_softmax=softmax))
        r = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
        router = model.model.layers[0].router
        logits, weights, ids = route(r, router, lambda role, model=model: model.weight(f"layers.0.{role}"))
        top = logits.gather(1, ids)
        expected = torch.exp(top) if softmax else 1 / (1 + torch.exp(-top))
        torch.testing.assert_close(weights, expected / expected.sum(1, keepdim=True))
        assert (ids[:, 0] == logits.argmax(1)).all()


def test_a_sliding_layer_forgets_what_left_the_window() -> None:
    layers = {"num_hidden_layers": 1, "rope_layout": [1], "sliding_window_layout": [1], "sliding_window_size": 4}
    model = random_reference(tiny_config(**{**HYBRID_ATTENTION, **layers}))
    a = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    b = a.clone()
    b[0, 3] = 99  # position 7 sees 4 to 7
    with torch.no_grad():
        last_a, last_b = model(a)[0][0], model(b)[0][0]
    torch.testing.assert_close(last_a[7], last_b[7], rtol=1e-5, atol=1e-5)  # threads may add up in another order
    assert not torch.allclose(last_a[6], last_b[6])
