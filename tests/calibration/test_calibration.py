"""Calibrating: what is learned is better on text it hasn't seen, and nothing is written that isn't."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write_gguf
from tiny_models import behind_attention, make_store, tiny_config

from smallthinker.calibration import calibrate as calibration
from smallthinker.calibration import training
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError, RequestError, StoreFormatError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE
from smallthinker.llm import DEMO_STORE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_STORE, tmp_path / "demo"))


def text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))


def logits(path: Path) -> np.ndarray:
    tokens = list(range(40, 80))
    with Engine(path, max_slots=10, context=128) as engine:
        engine.prefill(tokens[:8])
        return np.stack([engine.decode(token) for token in tokens[8:]])


def test_guesses_of_held_out_text_become_better_and_outputs_stay(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logits(demo)
    file = tmp_path / "text.txt"
    file.write_text(text(), encoding="utf-8")
    assert main(["calibrate", str(demo), "--text", str(file), "--tokens", "1500", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == 1500 and facts["held_out"] == 300
    assert Path(facts["file"]).stat().st_size == facts["file_bytes"]
    for name in ("the next token's first layer", "the next layer"):
        assert facts["right"][name]["after"] > facts["right"][name]["before"] + 0.05, name
    assert np.array_equal(before, logits(demo))
    assert main(["calibrate", str(demo), "--text", str(file)]) == 2
    assert "exists already; --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    "router",
    [{}, {"reads": "mixed"}, {"score": "sigmoid", "bias": "choice", "groups": 2, "kept_groups": 1}, {"bias": "logits"}],
    ids=["ffn_input", "mixed", "choice", "logits"],
)
def test_layers_whose_routers_stand_behind_attention_are_guessed_better_before_it(
    tmp_path: Path, router: dict[str, object]
) -> None:
    config = behind_attention(tiny_config())
    assert config.layers[0].ffn is not None
    layers = [replace(layer, ffn=replace(layer.ffn, router=replace(layer.router, **router))) for layer in config.layers]
    dense_first = replace(layers[0], ffn=replace(config.layers[0].ffn, router=None, slices=2))
    store, _ = make_store(replace(config, layers=(dense_first, *layers[1:])), tmp_path)
    before = logits(store)
    result = calibration.calibrate(store, text(), tokens=1500)
    assert result.file is not None
    own, next_layer = result.right["a layer, before its attention"], result.right["the next layer"]
    assert own[1] > own[0] + 0.03 and next_layer[1] > next_layer[0] + 0.03
    assert np.array_equal(before, logits(store))
    assert sorted(path.name for path in store.iterdir() if path.name.startswith(".")) == []


@pytest.mark.filterwarnings("ignore:.*GGUF can't say more")
def test_the_predictor_of_a_gguf_file_lies_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_store(tiny_config(), tmp_path)
    file = write_gguf(tmp_path / "checkpoint", tmp_path / "tiny.gguf", "F32")
    beside = sorted(path.name for path in tmp_path.iterdir())
    before = logits(file)
    result = calibration.calibrate(file, text(), tokens=600)
    assert result.file is not None and result.file.is_relative_to(tmp_path / "cache" / "smallthinker")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*beside, "cache"})
    assert [path.name for path in result.file.parent.iterdir() if path.name.startswith(".")] == []
    assert np.array_equal(before, logits(file))
    result.file.write_bytes(result.file.read_bytes()[:-1])
    with pytest.raises(StoreFormatError, match="calibrate --force") as e:
        logits(file)
    assert "\n" not in str(e.value) and str(result.file) in str(e.value)
    result.file.unlink()
    assert np.array_equal(before, logits(file))


def test_a_predictor_that_is_no_better_is_not_written(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RIDGES", ())
    result = calibration.calibrate(demo, text(), tokens=300)
    assert result.file is None and "nothing was written" in result.text()
    assert sorted(p.name for p in demo.iterdir()) == sorted(p.name for p in DEMO_STORE.iterdir())


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    layers = [replace(layer, ffn=replace(layer.ffn, router=None, slices=2)) for layer in config.layers if layer.ffn]
    store, _ = make_store(replace(config, family="described", layers=tuple(layers)), tmp_path)
    with pytest.raises(ConfigError, match="calibrate: this model is dense"):
        calibration.calibrate(store, text())


def test_too_little_text_is_refused(demo: Path) -> None:
    with pytest.raises(RequestError, match="at least 256 tokens, found"):
        calibration.calibrate(demo, "short")
    with pytest.raises(RequestError, match="tokens: expected at least 256, found 3"):
        calibration.calibrate(demo, text(), tokens=3)


def test_an_existing_predictor_is_kept_without_force(demo: Path) -> None:
    (demo / PREDICTOR_FILE).write_bytes(b"x")
    with pytest.raises(StoreWriteError, match="`force`"):
        calibration.calibrate(demo, text(), tokens=300)
    assert (demo / PREDICTOR_FILE).read_bytes() == b"x"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_states_have_their_room_before_they_are_mapped(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.sys, "platform", platform)
    states = calibration._spool(tmp_path, np.dtype(np.float32), (700, 1000))  # more than is written at once
    assert states.shape == (700, 1000) and not states[-1].any()
    assert not list(tmp_path.iterdir())
