"""recipes/split_experts.py: a dense model's networks as experts; all of them are the dense model, some are routed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from smallthinker.calibration.tracing import record
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.synthetic.synth import synth

pytest.importorskip("safetensors")
RECIPE = Path(__file__).parents[2] / "recipes" / "split_experts.py"
CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "bos_token_id": 298, "eos_token_id": 299,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 256, 60).tolist()


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("split_experts", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["split_experts"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return synth(str(folder / "config.json"), folder / "checkpoint", "none")


def logits(checkpoint: Path, store: Path) -> np.ndarray:
    with Engine(convert(checkpoint, store, "f32"), memory="4GiB") as engine:
        return engine.prefill(TOKENS)[0]


def test_with_all_experts_active_it_is_the_dense_model(recipe: ModuleType, dense: Path, tmp_path: Path) -> None:
    recipe.split(dense, tmp_path / "whole", 4, 4)
    found, wanted = logits(tmp_path / "whole", tmp_path / "a"), logits(dense, tmp_path / "b")
    np.testing.assert_allclose(found, wanted, atol=2e-5 * float(np.ptp(wanted)))


def test_some_experts_are_chosen_by_the_token(recipe: ModuleType, dense: Path, tmp_path: Path) -> None:
    recipe.split(dense, tmp_path / "some", 4, 2)
    store = convert(tmp_path / "some", tmp_path / "store", "f32")
    with Engine(store, memory="4GiB") as engine:
        trace = record(engine, [TOKENS])
    counts = [np.bincount(trace.ids[:, layer].ravel(), minlength=4) for layer in range(3)]
    assert all(0 < count.max() < len(TOKENS) for count in counts)  # no expert is every token's
    assert len({tuple(sorted(ids)) for ids in trace.ids[:, 0].tolist()}) > 2


def test_clusters_have_one_size_and_hold_what_points_the_same_way(recipe: ModuleType) -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(4, 32, dtype=np.float32)
    rows = np.repeat(centres, 16, 0) + 0.05 * rng.standard_normal((64, 32)).astype(np.float32)
    of = recipe.balanced_clusters(rows[rng.permutation(64)], 4)
    assert np.bincount(of).tolist() == [16] * 4


def test_what_can_not_be_split_is_refused(recipe: ModuleType, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experts: expected a number that divides the width 256"):
        recipe.split(dense, tmp_path / "out", 16, 2)
    recipe.split(dense, tmp_path / "routed", 4, 2)
    with pytest.raises(ConfigError, match="layer 0: expected a dense network"):
        recipe.split(tmp_path / "routed", tmp_path / "again", 4, 2)
