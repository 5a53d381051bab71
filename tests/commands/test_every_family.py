"""Commands that look into models, over families that differ most: dense in slices, dense in some layers, routers with
biases. What each says must be true of that model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs smallthinker[train]")

from family_checkpoints import BASE, CASES

from smallthinker.calibration.tracing import record
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.models.registry import parse_model
from smallthinker.prediction.routing import traced_routing
from smallthinker.router.trace import load_trace

KINDS = ("llama 3", "gemma3", "glm4_moe", "qwen3_moe mixed", "gpt_oss")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A family's config.json, and a random store of it."""
    kind, more = CASES[request.param]
    folder = tmp_path_factory.mktemp("family")
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": kind, **BASE, **more}))
    return config, synth(str(config), folder / "store", "q4_0")


def test_a_synthetic_store_says_how_it_is_cut_and_keeps_biases_and_counts(model: tuple[Path, Path]) -> None:
    config, path = model
    with Store.open(path) as store:
        parsed = parse_model(json.loads(config.read_text()))
        assert store.config == parsed
        raw = json.loads((path / "config.json").read_text())
        if parsed.certain_layers:
            assert raw["num_mlp_slices"] == store.config.experts_of_layers[parsed.certain_layers[0]]
        for name in store.dense_names():
            if "bias" in name:
                assert not store.dense(name).any(), name


def test_inspect_speaks_of_slices_where_there_are_no_experts(
    model: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model[1])]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("  experts", "  slices"))]
    with Store.open(model[1]) as store:
        config, facts = store.config, describe(store)
    assert line.startswith("  slices") == (not config.routed_layers)
    assert ("all used by each token" in line) == (not config.routed_layers)
    dense = len(config.certain_layers)
    assert facts["experts"]["dense_layers"] == dense
    assert (f"{dense} layers are dense" in line) == (0 < dense < config.num_layers)


def test_a_trace_is_of_the_routed_layers_or_says_that_there_are_none(
    model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text, out = model[1], tmp_path / "text", tmp_path / "trace"
    text.write_text("a text of some words " * 4)
    code = main(["trace", str(path), "--text", str(text), "-o", str(out), "--memory", "4GiB"])
    with Store.open(path) as store:
        config = store.config
    if not config.routed_layers:
        assert code == 2 and "this model is dense: no layer has a router" in capsys.readouterr().err
        return
    assert code == 0
    trace = load_trace(out)
    assert (trace.layers, trace.experts, trace.experts_per_token) == (len(config.routed_layers), 8, 3)
    chosen = np.take_along_axis(trace.probs.astype(np.float32), trace.ids.astype(np.int64), 2)
    if all(config.layers[layer].router.bias != "choice" for layer in config.routed_layers):
        rest = np.sort(trace.probs.astype(np.float32), 2)[:, :, -3]
        np.testing.assert_allclose(chosen.min(2), rest, atol=2e-3)  # those with the largest gate values
    assert main(["cache-sim", str(out)]) == 0
    routing = traced_routing(trace, 20, config)
    assert routing.ids.shape == (20, config.num_layers, config.experts_per_token)
    np.testing.assert_array_equal(routing.ids[:, list(config.routed_layers), :3], trace.ids[:20])


def test_plan_measures_any_family_here(model: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--memory", "4GiB", "--storage", "nvme", "--prompt", "8", "--max-tokens", "8"]
    assert main(["plan", str(model[1]), *asked]) == 0
    said = capsys.readouterr().out
    with Store.open(model[1]) as store:
        records = store.config.records_are
    assert f"{store.num_experts} {records}; context" in said
    assert ("every token uses all slices" in said) == (records == "slices")


def test_a_skew_is_of_routers(model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["synth", str(model[0]), str(tmp_path / "store"), "--skew", "4"])
    config = parse_model(json.loads(model[0].read_text()))
    if not config.routed_layers:
        assert code == 2 and "skew: expected 0 for a dense model" in capsys.readouterr().err
        return
    assert code == 0
    tokens = np.random.default_rng(0).integers(300, size=200).tolist()
    uneven = []
    for path in (model[1], tmp_path / "store"):
        with Engine(path, memory="4GiB") as engine:
            trace = record(engine, [tokens])
        counts = np.array([np.bincount(layer.ravel(), minlength=8) for layer in trace.ids.swapaxes(0, 1)])
        uneven.append(counts.std())
    assert uneven[1] > 1.3 * uneven[0]
