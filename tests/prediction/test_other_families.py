"""Predictions for models that are dense, in all layers or in some."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs smallthinker[train]")

from family_checkpoints import BASE, CASES
from prediction_settings import costs, setting

from smallthinker.expert_store.format import packed_bytes, record_layouts
from smallthinker.memory_plan import MIB
from smallthinker.models.description import Activation
from smallthinker.models.registry import parse_model
from smallthinker.prediction.needs import floor_bytes
from smallthinker.prediction.predict import predict
from smallthinker.prediction.routing import synthetic_routing


@pytest.mark.parametrize(("activation", "share"), [("silu", 1.0), ("relu", 2 / 3)])
def test_only_behind_relu_dead_neurons_cost_nothing(activation: str, share: float) -> None:
    kind, more = CASES["qwen3_moe mixed"]
    config = parse_model({"model_type": kind, **BASE, **more})
    layers = [
        replace(layer, ffn=replace(layer.ffn, activation=Activation(activation)))
        for layer in config.layers
        if layer.ffn
    ]
    config = replace(config, layers=tuple(layers))
    slow = costs(experts_per_token=config.experts_per_token, all_experts_sec=1.0, memory_bytes_per_sec=1e6)
    found = setting(config, tokens=8, routing=synthetic_routing(config, 24, 1.3), costs=slow)
    touched = 1e6 * predict(found).later_decode.roofs.memory_sec
    layouts = record_layouts(config, found.model.formats)
    experts = [layout and sum(part.nbytes for part in layout.sections) for layout in layouts]
    chosen = sum(k * nbytes for k, nbytes in zip(config.used_of_layers, experts, strict=True) if nbytes)
    words = packed_bytes("q4_0", "tiles", config.vocab_size, config.hidden_size)
    beside = found.model.dense_bytes - words * (0 if config.head.tied else 1)
    assert touched == pytest.approx(beside + share * chosen, rel=0.02)


@pytest.mark.parametrize("name", ["llama 3", "glm4_moe", "qwen3_moe mixed"])
def test_a_prediction_counts_each_layer_by_its_own_experts(name: str) -> None:
    kind, more = CASES[name]
    # wide enough that the floor leaves most of it on the disk
    wide = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 6}
    wide |= {"moe_intermediate_size": 1024} if "moe" in kind else {}
    config = parse_model({"model_type": kind, **BASE, **more, **wide})
    assert len(config.certain_layers) in (6, 1)
    made_up = setting(config, tokens=24, routing=synthetic_routing(config, 64, 1.3))
    routing = made_up.routing
    for layer, (k, experts) in enumerate(zip(config.used_of_layers, config.experts_of_layers, strict=True)):
        ids = routing.ids[:, layer, :k]
        assert ids.max() < experts and all(len(set(token)) == k for token in ids.tolist())
    whole = predict(made_up)
    assert whole.plan.slots == config.num_records and whole.later_decode.hit_rate > 0.99
    floor = floor_bytes(made_up.model, made_up.process)
    least = predict(setting(config, budget_bytes=floor + MIB, tokens=24, routing=routing))
    assert least.plan.slots < config.num_records
    assert least.later_decode.bytes_read_per_token > 0
    assert least.later_decode.tok_per_sec < whole.later_decode.tok_per_sec
