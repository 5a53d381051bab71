"""Tracing: what is recorded is what the router said, whatever the chunks; a skewed model is skewed in each layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import HYBRID_ATTENTION, behind_attention, make_store, tiny_config

from smallthinker.arithmetic import Route
from smallthinker.calibration.tracing import gate_values, random_usage, record, split
from smallthinker.engine import Engine
from smallthinker.errors import RequestError
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.forward import Observers

SMALL: dict[str, Any] = {
    "architectures": ["SmallThinkerForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "moe_num_primary_experts": 32,
    "moe_num_active_primary_experts": 4,
    "moe_ffn_hidden_size": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
    "eos_token_id": [999],
}


@pytest.mark.parametrize("is_late", [False, True])
def test_a_trace_has_the_routers_choice_and_its_gates_whatever_the_chunks(
    hybrid_store: Path, tmp_path: Path, is_late: bool
) -> None:
    if is_late:
        hybrid_store, _ = make_store(behind_attention(tiny_config(**HYBRID_ATTENTION)), tmp_path, "q4_0")
    tokens = np.random.default_rng(0).integers(0, 290, 45).tolist()
    traces = []
    for chunk in (1, 7, 64):
        with Engine(hybrid_store, context=64, chunk=chunk) as engine:
            traces.append(record(engine, [tokens[:30], [], tokens[30:]]))
    for trace in traces:
        assert np.array_equal(trace.ids, traces[0].ids)
        assert trace.starts.tolist() == [0, 30]
        assert trace.probs.sum(2) == pytest.approx(1, abs=0.01)  # of a softmax
        chosen = np.take_along_axis(trace.probs, trace.ids.astype(np.int64), 2)
        assert (chosen.min(2) >= np.sort(trace.probs, 2)[:, :, -trace.experts_per_token]).all()


def test_a_sequence_that_begins_like_the_last_one_is_recorded_whole(hybrid_store: Path) -> None:
    tokens = list(range(20))
    with Engine(hybrid_store, context=64) as engine:
        trace = record(engine, [tokens, tokens])
    assert trace.tokens == 40
    assert np.array_equal(trace.ids[:20], trace.ids[20:])


def test_an_observer_changes_nothing_and_can_be_taken_away(hybrid_store: Path) -> None:
    seen: list[int] = []

    def observe(layer: int, x: np.ndarray, route: Route) -> None:
        seen.append(len(x))

    with Engine(hybrid_store, context=64) as engine:
        plain = engine.prefill(list(range(10)))[0], engine.decode(3)
        engine.forget()
        engine.observe(Observers(routed=observe))
        watched = engine.prefill(list(range(10)))[0], engine.decode(3)
        assert seen == [10] * 4 + [1] * 4
        engine.observe(None)
        engine.decode(4)
        assert len(seen) == 8
    assert all(np.array_equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_nothing_to_trace_is_an_error(hybrid_store: Path) -> None:
    with Engine(hybrid_store, context=64) as engine, pytest.raises(RequestError, match="at least one token"):
        record(engine, [[]])


def test_gates_of_huge_logits_stay_numbers() -> None:
    logits = np.array([[1e30, 0, -1e30]], np.float32)
    assert gate_values(logits.copy(), "sigmoid")[0] == pytest.approx([1, 0.5, 0])
    assert gate_values(logits.copy(), "softmax")[0].tolist() == [1, 0, 0]


def test_a_long_text_becomes_sequences_of_the_context() -> None:
    assert [list(part) for part in split(list(range(7)), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("skew", [0.0, 0.7, 1.3])
def test_a_bias_is_skew_times_the_spread_of_the_tokens_in_every_layer(
    tmp_path: Path, skew: float, softmax: bool
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL | {"moe_primary_router_apply_softmax": softmax}))
    store = synth(str(config), tmp_path / "store", "q8_0", seed=1, skew=skew)
    logits: dict[int, np.ndarray] = {}
    with Engine(store, context=512, chunk=512) as engine:
        routers = [engine.router_weights(layer) for layer in range(4)]
        engine.observe(Observers(lambda layer, x, route: logits.__setitem__(layer, x @ routers[layer].T)))
        engine.prefill(np.random.default_rng(2).integers(0, 1000, 512).tolist())
        live, all_neurons = engine.neuron_counts()
    for of_layer in logits.values():
        bias, spread = of_layer.mean(0).std(), of_layer.std(0).mean()
        assert bias / spread == pytest.approx(skew, abs=0.15)
    assert live / all_neurons == pytest.approx(0.5, abs=0.03)


def test_a_skew_of_the_published_kind_gives_the_published_use(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    _, even = random_usage(synth(str(config), tmp_path / "even", "q4_0"), seed=0)
    tokens, use = random_usage(synth(str(config), tmp_path / "skewed", "q4_0", skew=1.3), seed=0)
    assert tokens == 512
    assert 0.7 <= use.rarely_used <= 0.8
    assert 0.35 <= use.top_quarter <= 0.6
    assert even.top_quarter < 0.25 and use.even == even.even == 0.125
    assert even.repeated == pytest.approx(0.14, abs=0.04) and use.repeated is not None and use.repeated > 0.35
