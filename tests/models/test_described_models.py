"""Any model that can be described and that today's kernels can compute: the engine agrees with the reference, and every
way to run it gives the same bits."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_reference, write_checkpoint

from smallthinker.engine import Engine
from smallthinker.errors import CancelledError, ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.format import ALWAYS_F32, Formats
from smallthinker.models import description as d
from smallthinker.models.registry import parse_model, to_config
from smallthinker.models.tensors import tensors
from smallthinker.router import look_ahead as look_ahead_module

# Of the logits' range at a position; int8 activations, which formats of blocks have, make the larger one.
TOLERANCE, TOLERANCE_OF_BLOCKS = 3e-3, 6e-2
ELEMENTS, BLOCKS = ("f32", "f16", "bf16"), ("q8_0", "q4_0")


@st.composite
def routers(draw: st.DrawFn, all_chosen: bool) -> d.Router:
    experts = draw(st.integers(1, 8))
    groups = draw(st.sampled_from([n for n in (1, 2, 4) if experts % n == 0 and (n == 1 or experts // n > 1)]))
    kept = groups if all_chosen else draw(st.integers(1, groups))
    return d.Router(
        experts,
        experts if all_chosen else draw(st.integers(1, min(3, kept * experts // groups))),
        draw(st.sampled_from(["residual", "ffn_input", "mixed"])),
        draw(st.sampled_from(["softmax", "sigmoid"])),
        draw(st.sampled_from(["all", "chosen"])),
        normalise=draw(st.booleans()),
        bias=draw(st.sampled_from(["none", "logits", "choice"])),
        groups=groups,
        kept_groups=kept,
        scale=draw(st.sampled_from([1.0, 2.5])),
        expert_scale=draw(st.booleans()),
        applied_to=draw(st.sampled_from(["output", "output", "input"])),
        norm=draw(st.none() | norms()),
        logit_scale=draw(st.sampled_from([1.0, 0.25])),
    )


@st.composite
def networks(draw: st.DrawFn, all_chosen: bool) -> d.Ffn:
    kinds = st.sampled_from(["relu", "silu", "gelu", "gelu_tanh", "relu2"])
    widths = st.sampled_from([32, 64, 96])
    network = d.Ffn(draw(widths), d.Activation(draw(kinds)), draw(st.booleans()), bias=draw(st.booleans()))
    if network.gated and draw(st.booleans()):
        network = replace(network, activation=d.Activation("clamped_swiglu", 0.75, 1.7))
    if draw(st.booleans()):
        shared = d.Ffn(draw(widths), d.Activation(draw(kinds)), gated=draw(st.booleans()))
        around = (draw(st.none() | norms()) for _ in range(3))
        kept = draw(st.sampled_from(["shared", "shared gate", "beside"]))
        beside = d.Beside(shared, *around) if kept == "beside" else None
        shared_or_none = None if beside else shared
        network = replace(network, shared=shared_or_none, shared_gate=kept == "shared gate", beside=beside)
    if draw(st.booleans()):
        return replace(network, slices=draw(st.integers(1, 4)))
    return replace(network, router=draw(routers(all_chosen)))


@st.composite
def norms(draw: st.DrawFn) -> d.Norm:
    return d.Norm(
        draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        draw(st.sampled_from(["rms", "rms", "layer"])),
        has_weight=draw(st.sampled_from([True, True, False])),
        plus_one=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@st.composite
def ropes(draw: st.DrawFn, head_dim: int) -> d.Rope:
    size = draw(st.sampled_from([head_dim, head_dim, head_dim // 2, 6]))
    factors = tuple(float(1 + i % 3) for i in range(size // 2))
    original = draw(st.sampled_from([8, 4096]))  # below and above every context of these tests
    scalings = [
        None,
        None,
        d.LinearScaling(4.0),
        d.Llama3Scaling(8.0, 1.0, 4.0, 64),
        d.YarnScaling(4.0, 64, 1.1386),
        d.LongRopeScaling(tuple(reversed(factors)), factors, original, 1.19),
    ]
    return d.Rope(
        draw(st.sampled_from([1e4, 1.5e6])),
        size,
        draw(st.sampled_from(["half", "interleaved"])),
        draw(st.sampled_from([None, None, head_dim])),
        draw(st.sampled_from(scalings)),
        draw(st.sampled_from([None, None, 1])),
    )


@st.composite
def mixers(draw: st.DrawFn) -> d.Attention:
    kv_heads, head_dim = draw(st.sampled_from([1, 2])), draw(st.sampled_from([16, 32]))
    return d.Attention(
        kv_heads * 32 // head_dim * draw(st.integers(1, 2)),
        kv_heads,
        head_dim,
        draw(st.none() | ropes(head_dim)),
        window=draw(st.sampled_from([0, 0, 3, 20])),
        scale=draw(st.sampled_from([None, None, 0.1])),
        qk_norm=draw(st.none() | norms()),
        qk_norm_of=draw(st.sampled_from(["head", "projection"])),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        clip=draw(st.sampled_from([0.0, 0.0, 1.5])),
        chunk=draw(st.sampled_from([0, 0, 0, 9])),
        softcap=draw(st.sampled_from([0.0, 0.0, 2.0])),
        sinks=draw(st.booleans()),
        growth=draw(st.sampled_from([None, None, d.Growth(0.1, 8, 1)])),
        values=draw(st.sampled_from(["own", "own", "keys"])),
        v_norm=draw(st.none() | norms()),
    )


@st.composite
def models(draw: st.DrawFn, all_chosen: bool = False) -> d.Model:
    activations = st.builds(d.Activation, st.sampled_from(["relu", "silu", "gelu_tanh"]))

    def layer() -> d.Layer:
        after_mixer, after_ffn = (draw(st.none() | norms()) for _ in range(2))
        # none at all, and numbers would soon be beyond a KV cache's range
        before_mixer = draw(norms() if after_mixer is None else st.none() | norms())
        before_ffn = draw(norms() if after_ffn is None else st.none() | norms())
        parallel = draw(st.sampled_from([False, False, before_mixer is not None]))
        around = d.Norms(before_mixer, before_ffn, after_mixer, after_ffn, parallel)
        scale = draw(st.sampled_from([1.0, 0.5]))
        gate = draw(st.none() | st.builds(d.InputGate, activations, st.none() | norms())) if inputs else None
        return d.Layer(draw(mixers()), draw(networks(all_chosen)), around, scale, gate, draw(st.booleans()))

    inputs = draw(st.none() | st.builds(d.LayerInputs, st.sampled_from([32, 64]), norms(), st.just(2.0), st.just(0.3)))
    layers = [layer() for _ in range(draw(st.integers(1, 4)))]
    for number in range(1, len(layers)):
        source = draw(st.sampled_from([None, None, *range(number)]))
        if source is not None and layers[source].attention.kv_of is None:
            mixer = replace(layers[source].attention, kv_of=source)
            layers[number] = replace(layers[number], mixer=mixer)
    return d.Model(
        "described",
        vocab_size=300,
        hidden_size=draw(st.sampled_from([32, 64, 96])),
        context=256,
        layers=tuple(layers),
        final_norm=draw(norms()),
        head=d.Head(
            draw(st.booleans()),
            draw(st.sampled_from([1.0, 0.25])),
            draw(st.sampled_from([0.0, 0.0, 5.0])),
            draw(st.booleans()),
        ),
        tokens=d.SpecialTokens(298, (298, 299)),
        embedding_scale=draw(st.sampled_from([1.0, 8.0])),
        layer_inputs=inputs,
    )


def formats(model: d.Model, names: tuple[str, ...]) -> st.SearchStrategy[Formats]:
    """Some roles and some tensors have a format of their own."""
    matrices = [tensor for tensor in tensors(model) if len(tensor.shape) > 1 and tensor.role not in ALWAYS_F32]
    named = sorted({name for tensor in matrices for name in (tensor.role, tensor.name)})
    others = st.dictionaries(st.sampled_from(named), st.sampled_from(names), max_size=6)
    return st.builds(Formats, st.sampled_from(names), others)


def stored(model: d.Model, formats: Formats, folder: Path) -> tuple[Path, Any]:
    reference = random_reference(model)
    return convert(write_checkpoint(reference, folder / "checkpoint"), folder / "store", formats), reference


def expected_logits(reference: Any, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = reference(torch.tensor([prompt]))[0][0].numpy()
    return logits


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    spread = expected.max(-1) - expected.min(-1)
    assert float((np.abs(found - expected).max(-1) / spread).max()) < tolerance


# The same models at each run: where two experts are as good as equal, rounding may rightly choose another one, and no
# bound holds for such a draw.
@given(model=models(), data=st.data())
@settings(max_examples=40, derandomize=True)
def test_the_engine_agrees_with_the_reference(model: d.Model, data: st.DataObject) -> None:
    chosen = data.draw(formats(model, ELEMENTS), label="formats")
    prompt = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 256, 30).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store, reference = stored(model, chosen, Path(folder))
        with Engine(store, max_slots=data.draw(st.integers(1, 12), label="slots")) as engine:
            assert_near(engine.all_logits(prompt), expected_logits(reference, prompt), TOLERANCE)


@given(model=models(all_chosen=True), data=st.data())  # or a rounding could choose another expert
@settings(max_examples=20, derandomize=True)
def test_formats_of_blocks_stay_near_the_reference(model: d.Model, data: st.DataObject) -> None:
    chosen = data.draw(formats(model, ("q8_0", *ELEMENTS)), label="formats")
    prompt = np.random.default_rng(0).integers(0, 256, 20).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store, reference = stored(model, chosen, Path(folder))
        with Engine(store) as engine:
            assert_near(engine.all_logits(prompt), expected_logits(reference, prompt), TOLERANCE_OF_BLOCKS)


@given(model=models(), data=st.data())
@settings(max_examples=25)
def test_every_way_to_run_it_gives_the_same_bits(model: d.Model, data: st.DataObject) -> None:
    chosen = data.draw(formats(model, ELEMENTS + BLOCKS), label="formats")
    prompt = np.random.default_rng(0).integers(0, 256, data.draw(st.integers(2, 40), label="tokens")).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store, _ = stored(model, chosen, Path(folder))
        with Engine(store, chunk=512) as engine:
            everything = engine.all_logits(prompt)
        ways = {
            "chunk": data.draw(st.sampled_from([1, 3, 16, 32]), label="chunk"),
            "max_slots": data.draw(st.integers(1, 12), label="slots"),
            "threads": data.draw(st.integers(1, 3), label="threads"),
            "prefetch": data.draw(st.booleans(), label="prefetch"),
        }
        with Engine(store, **ways) as engine:
            assert engine.all_logits(prompt).tobytes() == everything.tobytes()
            first, _ = engine.prefill(prompt[:1])
            stepwise = np.stack([first, *(engine.decode(token) for token in prompt[1:])])
            assert stepwise.tobytes() == everything.tobytes()


@given(model=models(), data=st.data())
@settings(max_examples=15)
def test_tokens_that_may_be_wrong_get_the_same_bits_and_are_taken_back(model: d.Model, data: st.DataObject) -> None:
    chosen = data.draw(formats(model, ELEMENTS + BLOCKS), label="formats")
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 16), label="seed"))
    tokens = rng.integers(0, 256, 40).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store, _ = stored(model, chosen, Path(folder))
        with Engine(store, chunk=13, max_slots=data.draw(st.integers(1, 12), label="slots")) as engine:
            expected = engine.all_logits(tokens)
            engine.prefill(tokens[:5])
            conversation = engine._current
            assert conversation is not None
            while left := tokens[len(conversation.tokens) :]:
                right = left[: rng.integers(1, 8)]
                wrong = rng.integers(0, 256, rng.integers(0, 6)).tolist()
                logits = engine.verify(conversation, right + wrong)
                at = len(conversation.tokens)
                engine.accept(conversation, right)
                assert logits[: len(right)].tobytes() == expected[at : at + len(right)].tobytes()


def late_model(layers: int = 3) -> d.Model:
    """Its routers read what attention gives, and each layer has a shared network."""
    router = d.Router(16, 2, "ffn_input", "softmax", "all", normalise=True)
    shared = d.Ffn(32, d.Activation("silu"))
    ffn = d.Ffn(32, d.Activation("silu"), router=router, shared=shared, shared_gate=True)
    norm = d.Norm(1e-6)
    layer = d.Layer(d.Attention(2, 1, 32, d.Rope(1e4, 32)), ffn, d.Norms(norm, norm))
    tokens = d.SpecialTokens(298, (298, 299))
    return d.Model("described", 300, 64, 256, (layer,) * layers, norm, d.Head(True), tokens)


def test_a_router_behind_attention_is_asked_before_it_and_its_guesses_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead_module, "_HOPE", 0.6)  # of random weights, few of the first guesses are right
    store, _ = stored(late_model(1), Formats("f16"), tmp_path)
    tokens = np.random.default_rng(0).integers(0, 256, 100).tolist()
    found = {}
    for look_ahead in (True, False):
        with Engine(store, max_slots=6, look_ahead=look_ahead) as engine:
            engine.prefill(tokens[:1])
            logits = [engine.decode(token) for token in tokens[1:]]
            found[look_ahead] = engine.experts.counters(), np.stack(logits)
    guessing, plain = found[True][0], found[False][0]
    assert guessing.guessed + guessing.late > 0  # of the only layer, which no other could guess
    assert plain.guessed + plain.late == 0
    assert guessing.requests == plain.requests
    assert found[True][1].tobytes() == found[False][1].tobytes()


@pytest.mark.parametrize("chunk", [1, 16])
def test_what_is_cancelled_between_layers_leaves_no_trace(tmp_path: Path, chunk: int) -> None:
    store, _ = stored(late_model(), Formats("f16"), tmp_path)
    prompt = np.random.default_rng(0).integers(0, 256, 32).tolist()
    with Engine(store, max_slots=5, chunk=chunk) as engine:
        expected, _ = engine.prefill(prompt)
        for after in range(1, 6):
            engine.forget()
            calls = iter(range(after))
            with pytest.raises(CancelledError):
                engine.prefill(prompt, cancelled=lambda calls=calls: next(calls, None) is None)
            logits, _ = engine.prefill(prompt)
            assert logits.tobytes() == expected.tobytes()


@given(model=models())
def test_a_description_is_written_and_read_again(model: d.Model) -> None:
    assert parse_model(json.loads(json.dumps(to_config(model)))) == model


def described(**changes: Any) -> dict[str, Any]:
    norm = d.Norm(1e-6)
    layer = d.Layer(
        d.Attention(2, 1, 16, d.Rope(1e4, 16, scaling=d.LinearScaling(2.0))),
        d.Ffn(32, d.Activation("silu")),
        d.Norms(norm, norm),
    )
    model = d.Model("described", 300, 32, 64, (layer,), norm, d.Head(True), d.SpecialTokens(None, (1,)))
    config = to_config(model)
    layer_config = config["model"]["layers"][0]
    for path, value in changes.items():
        at: Any = {"model": config["model"], "layer": layer_config}
        *parents, key = path.split("__")
        for parent in parents:
            at = at[parent]
        at[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model: expected an object that describes Model, found 3"),
        ({"model__vocab_size": 0}, "vocab_size: expected at least 1, found 0"),
        ({"model__vocab_size": 1 << 40}, "model.vocab_size: expected 0 to"),
        ({"model__vocab_size": True}, "model.vocab_size: expected int, found True"),
        ({"model__layers": []}, "layers: expected at least 1, found 0"),
        ({"model__layers": {}}, "model.layers: expected a list"),
        ({"layer__mixer__heads": -2}, r"model.layers\[0\].mixer.heads: expected 0 to"),
        ({"layer__mixer__is": "Attentive"}, r"model.layers\[0\].mixer.is: expected 'Attention' or .*'Attentive'"),
        ({"layer__mixer__rope__scaling": {}}, r"mixer.rope.scaling.is: expected 'LinearScaling' or"),
        ({"layer__mixer__sink": True}, r"mixer.sink: unknown key; Attention has heads"),
        ({"layer__ffn__width": 33}, "width of a feed-forward network: expected a multiple of 16"),
        ({"layer__ffn__slices": 0}, "slices: expected at least 1, found 0"),
        ({"layer__ffn__activation__kind": "tanh"}, r"ffn.activation.kind: expected 'relu' or .*'tanh'"),
        ({"layer__norms__before_mixer__eps": float("nan")}, r"norms.before_mixer.eps: expected float, found nan"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    config = described()
    if "model" in changes:
        config["model"] = changes["model"]
    else:
        config = described(**changes)
    with pytest.raises(ConfigError, match=message):
        parse_model(config)
