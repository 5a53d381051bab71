"""Layers of every kind that the kernels compute, against the torch reference, without a store around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from queues import ShuffledQueue
from tiny_models import random_reference, tiny_config

from smallthinker import _kernels
from smallthinker.arithmetic import Arithmetic, Floats, Route
from smallthinker.cache.expert_cache import ExpertCache, allocate_slots
from smallthinker.cache.policies import DEFAULT_POLICY
from smallthinker.cache.sequence_state import SequenceShape, SequenceState
from smallthinker.expert_store.format import Formats, Quant
from smallthinker.forward import ForwardPass, Observers
from smallthinker.models.description import (
    Activation,
    Ffn,
    Growth,
    Head,
    Llama3Scaling,
    LongRopeScaling,
    Model,
    Norm,
    Norms,
    Rope,
    YarnScaling,
)
from smallthinker.models.tensors import EXPERT_BIASES, EXPERT_ROLES, GATE, ROUTER, dense_tensors
from smallthinker.reference import ReferenceModel

NETWORKS = [
    *(
        Ffn(width, Activation(kind), gated, bias, slices=slices)  # type: ignore[arg-type]
        for width, kind, gated, slices, bias in (
            (64, "silu", True, 3, False),
            (32, "relu", True, 2, False),
            (96, "gelu", True, 1, False),
            (32, "gelu_tanh", False, 5, False),
            (64, "relu2", False, 2, False),
            (32, "relu", False, 3, False),
            (32, "relu", True, 3, True),
            (64, "gelu", False, 2, True),
        )
    ),
    Ffn(96, Activation("clamped_swiglu", 0.75, 1.7), bias=True, slices=2),
]


def packed(quant: Quant, layout: _kernels.Layout, weight: torch.Tensor) -> np.ndarray:
    return _kernels.pack(quant, layout, np.ascontiguousarray(weight.numpy(), np.float32))


class PackedWeights:
    """A reference's weights as a store has them, and all its experts in slots."""

    def __init__(self, model: ReferenceModel, quant: Quant) -> None:
        self.config, self.formats = model.model, Formats(quant)
        self._dense: dict[str, Any] = {}
        for tensor in dense_tensors(model.model):
            weight = model.weight(tensor.name).detach()
            as_it_is = weight.numpy() if weight.dim() == 1 else None
            kind: Quant = "f32" if tensor.role == ROUTER else quant
            self._dense[tensor.name] = packed(kind, "tiles", weight) if as_it_is is None else as_it_is
        records = []
        for number, layer in enumerate(self.config.layers):
            ffn = layer.ffn
            assert ffn is not None
            sections = _kernels.record_sections(
                (quant,) * 3, self.config.hidden_size, ffn.width, ffn.activation.kind, ffn.gated, ffn.bias
            )
            biases = EXPERT_BIASES if ffn.bias else ()
            roles = [role for role in (*EXPERT_ROLES, *biases) if ffn.gated or GATE not in role]
            for expert in range(ffn.experts):
                record = np.zeros(sections[-1].offset + sections[-1].nbytes, np.uint8)
                for role, section in zip(roles, sections, strict=True):
                    weight = model.weight(f"layers.{number}.{role}.{expert}").detach()
                    weight = weight[None] if weight.dim() == 1 else weight
                    kind = "f32" if role in biases else quant
                    stored = packed(kind, section.layout, weight.T if section.is_transposed else weight)
                    record[section.offset : section.offset + section.nbytes] = stored
                records.append(record)
        longest = max(map(len, records))
        self.slots = np.stack([np.pad(record, (0, longest - len(record))) for record in records])

    def dense_names(self) -> list[str]:
        return list(self._dense)

    def dense(self, name: str) -> Any:
        return self._dense[name]

    def table_rows(self, name: str, group: int) -> Any:
        raise AssertionError("no layer has inputs")


def forward_pass(weights: PackedWeights) -> ForwardPass:
    """Whose experts are copied from the weights' slots into its own, half of them at most."""
    config = weights.config
    slots = allocate_slots(max(config.num_records // 2, *config.experts_of_layers), weights.slots.shape[1])

    def read(record: int, slot: npt.NDArray[np.uint8]) -> None:
        slot[:] = weights.slots[record]

    policy = DEFAULT_POLICY(config.experts_of_layers, config.used_of_layers)
    experts = ExpertCache(slots, ShuffledQueue(slots, read), policy, config.experts_of_layers)
    return ForwardPass(Arithmetic(weights, _kernels.ThreadPool(2), slots), experts, config.num_layers)


def logits(weights: PackedWeights, chunks: list[list[int]]) -> Floats:
    """Of every position."""
    forward, state = forward_pass(weights), SequenceState(SequenceShape.of(weights.config, 64, 64))
    return np.concatenate([forward.step([(state, chunk)], all_logits=True) for chunk in chunks])


def model_with(*networks: Ffn) -> Model:
    """Its last layer keeps the experts that it has."""
    layers = tiny_config(num_hidden_layers=len(networks) + 1, rope_layout=None, sliding_window_layout=None).layers
    of = [replace(layer, ffn=ffn) for layer, ffn in zip(layers, networks, strict=False)]
    return replace(tiny_config(), layers=(*of, layers[-1]))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda ffn: f"{ffn.activation.kind}{' gated' * ffn.gated}")
def test_dense_networks_and_experts_of_any_activation_match_the_reference(network: Ffn) -> None:
    router = tiny_config().layers[0].router
    config = model_with(network, replace(network, router=router))
    reference = random_reference(config)
    prompt = np.random.default_rng(1).integers(0, 256, 40).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt]))[0][0].numpy()
    weights = PackedWeights(reference, "f16")
    found = logits(weights, [prompt])
    spread = expected.max(-1) - expected.min(-1)
    assert (np.abs(found - expected).max(-1) / spread).max() < 3e-3
    chunks = [prompt[:1], prompt[1:6], prompt[6:39], prompt[39:]]
    np.testing.assert_array_equal(logits(weights, chunks).view(np.uint32), found.view(np.uint32))


RMS, LAYER, PLUS_ONE = Norm(1e-6), Norm(1e-5, "layer", bias=True), Norm(1e-6, plus_one=True)
# What is usual in families: of the mixer, of the layer, of the model.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2": ({"bias": True}, {"norms": Norms(RMS, Norm(1e-5))}, {}),
    "qwen3": ({"qk_norm": RMS}, {}, {}),
    "olmoe": ({"qk_norm": Norm(1e-5), "qk_norm_of": "projection", "clip": 1.0}, {}, {}),
    "olmo2": ({"qk_norm": RMS, "qk_norm_of": "projection"}, {"norms": Norms(None, None, RMS, RMS)}, {}),
    "llama3": ({"rope": Rope(5e5, 16, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32))}, {}, {}),
    "mistral": ({"rope": Rope(1e6, 16, scaling=YarnScaling(16.0, 32, 1.277)), "growth": Growth(0.1, 16)}, {}, {}),
    "phi3": ({"rope": Rope(1e4, 12, scaling=LongRopeScaling((1.0,) * 6, (2.0,) * 6, 16, 1.19))}, {}, {}),
    "phimoe": ({"bias": True, "out_bias": True}, {"norms": Norms(LAYER, LAYER)}, {"final_norm": LAYER}),
    "gemma2": (
        {"softcap": 50.0, "scale": 0.2, "window": 8},
        {"norms": Norms(PLUS_ONE, PLUS_ONE, PLUS_ONE, PLUS_ONE)},
        {"embedding_scale": 8.0, "final_norm": PLUS_ONE, "head": Head(True, softcap=30.0)},
    ),
    "gemma4": (
        {"values": "keys", "qk_norm": RMS, "v_norm": Norm(1e-6, has_weight=False), "scale": 0.3,
         "rope": Rope(1e6, 16, turning=2)},
        {"norms": Norms(RMS, RMS, RMS, RMS), "output_scale": True}, {},
    ),
    "gpt_oss": ({"sinks": True, "bias": True, "out_bias": True, "window": 8}, {}, {}),
    "granite": (
        {"scale": 0.1}, {"residual_scale": 0.22}, {"embedding_scale": 12.0, "head": Head(False, scale=0.125)},
    ),
    "phi": (
        {"rope": Rope(1e4, 8), "bias": True, "out_bias": True},
        {"norms": Norms(LAYER, None, parallel=True)},
        {"final_norm": LAYER, "head": Head(False, bias=True)},
    ),
    "llama4": ({"rope": Rope(5e5, 16, "interleaved"), "chunk": 8}, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_usual_in_families_matches_the_reference_in_any_chunks(family: str) -> None:
    of_mixer, of_layer, of_model = FAMILIES[family]
    config = tiny_config()
    first, *others = config.layers  # which has positions and heads of its own
    mixer = replace(first.attention, heads=2, head_dim=32, kv_heads=1, rope=Rope(1e5, 32))
    layers = [replace(layer, mixer=replace(layer.attention, **of_mixer), **of_layer) for layer in others]
    config = replace(config, layers=(replace(first, mixer=mixer), *layers), **of_model)
    reference = random_reference(config)
    prompt = np.random.default_rng(1).integers(0, 256, 40).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt]))[0][0].numpy()
    weights = PackedWeights(reference, "f16")
    found = logits(weights, [prompt])
    spread = expected.max(-1) - expected.min(-1)
    assert (np.abs(found - expected).max(-1) / spread).max() < 3e-3
    chunks = [prompt[:1], prompt[1:6], prompt[6:39], prompt[39:]]
    np.testing.assert_array_equal(logits(weights, chunks).view(np.uint32), found.view(np.uint32))


def test_a_route_has_the_shape_of_its_layer() -> None:
    config = model_with(NETWORKS[3])  # five slices, then two of eight experts
    forward = forward_pass(PackedWeights(random_reference(config), "q8_0"))
    seen: list[int] = []

    def routed(layer: int, read: Floats, route: Route) -> None:
        seen.append(layer)
        assert read.shape == (3, config.hidden_size)
        if layer == 0:
            assert route.ids.tolist() == [[0, 1, 2, 3, 4]] * 3 and route.weights.tolist() == [[1] * 5] * 3
        else:
            assert route.ids.shape == route.weights.shape == (3, 2)
            assert route.weights.sum(-1) == pytest.approx(1)
        pairs = dict(zip(route.experts, route.pairs, strict=True))
        assert all(pair in pairs[expert] for pair, expert in enumerate(route.ids.ravel().tolist()))

    forward.observe(Observers(routed=routed))
    forward.step([(SequenceState(SequenceShape.of(config, 64, 64)), [1, 2, 3])])
    assert seen == [0, 1]
