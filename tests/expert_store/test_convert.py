"""Conversion: every weight arrives, memory is bounded, and what is wrong with a checkpoint is said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from reading import unpack_expert
from safetensors.numpy import load_file, save_file
from tiny_model import TINY

from smallthinker import _kernels
from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.format import Quant
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.models.registry import checkpoint_name, checkpoint_places, read_model
from smallthinker.text.packed_vocabulary import FILE_NAME

Run = Callable[..., subprocess.CompletedProcess[str]]
F32 = npt.NDArray[np.float32]

# largest error of a weight, in parts of the largest weight of its block; of q4_0: 9 of the smallest, as 7
TOLERANCE = {"f32": 0.0, "bf16": 0, "f16": 2**-11, "q8_0": 0.5 / 127 + 2**-11, "q4_0": 2 / 9 + 2**-11}


@pytest.fixture
def checkpoint(tiny_config: Path, tmp_path: Path) -> Path:
    """bf16, in several shards."""
    path = synth(str(tiny_config), tmp_path / "checkpoint", "none", shard_bytes=60_000)
    assert len(list(path.glob("model-*.safetensors"))) > 2
    return path


def as_single_file(checkpoint: Path, dtype: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
    """Rewrite a checkpoint as one file of float32 or float16; `change` replaces tensors, None removes one."""
    with Checkpoint(checkpoint) as source:
        tensors: dict[str, Any] = {
            checkpoint_name(source.config, name): source.read(name).astype(dtype)
            for name, _ in checkpoint_places(source.config)
        }
    for file in checkpoint.glob("model*"):
        file.unlink()
    tensors |= change or {}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, checkpoint / "model.safetensors")
    return tensors


def close(found: F32, expected: F32, quant: Quant) -> bool:
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max() <= TOLERANCE[quant] * np.abs(expected).max()
    )


@pytest.mark.parametrize("quant", ["q4_0", "q8_0", "bf16", "f16", "f32"])
def test_every_weight_of_a_checkpoint_is_in_the_store(checkpoint: Path, tmp_path: Path, quant: Quant) -> None:
    convert(checkpoint, tmp_path / "store", quant)
    with Store.open(tmp_path / "store") as store, Checkpoint(checkpoint) as source:
        store.verify()
        assert store.quant == quant
        assert store.config == source.config
        for name in store.dense_names():
            spec, expected, found = (
                store.dense_spec(name),
                source.read(name),
                store.dense(name),
            )
            if spec.quant is None:
                assert np.array_equal(found, expected)
            else:
                weights = _kernels.unpack(spec.quant, "tiles", found.copy(), *spec.shape)
                assert close(weights, expected, spec.quant), name
        for layer in range(store.config.num_layers):
            for expert in range(store.config.experts_per_layer):
                parts = unpack_expert(store, layer, expert)
                for part, found in zip(("gate", "up", "down"), parts, strict=True):
                    expected = source.read(f"layers.{layer}.{part}.{expert}")
                    assert close(found, expected, quant), (layer, expert, part)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_file_and_other_types_give_the_same_store(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    sharded = convert(checkpoint, tmp_path / "sharded", "q8_0")
    as_single_file(checkpoint, "float32")
    single = convert(checkpoint, tmp_path / "single", "q8_0")
    for name in ("dense.safetensors", "experts.safetensors"):
        assert (sharded / name).read_bytes() == (single / name).read_bytes()
    as_single_file(checkpoint, dtype)
    Store.open(convert(checkpoint, tmp_path / "other", "q8_0")).verify()


def test_strips_of_a_large_matrix_join_without_a_seam(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    whole = convert(checkpoint, tmp_path / "whole", "q4_0")
    monkeypatch.setattr(sys.modules[convert.__module__], "_STRIP_BYTES", 1)  # 16 rows a strip
    strips = convert(checkpoint, tmp_path / "strips", "q4_0")
    assert (whole / "dense.safetensors").read_bytes() == (strips / "dense.safetensors").read_bytes()


def test_a_head_stored_in_a_tied_model_is_ignored(checkpoint: Path, tmp_path: Path) -> None:
    as_single_file(checkpoint, "float32")
    (checkpoint / "config.json").write_text(json.dumps(TINY | {"tie_word_embeddings": True}))
    store = Store.open(convert(checkpoint, tmp_path / "store", "q4_0"))
    assert "lm_head" not in store.dense_names()


def test_tokenizer_and_config_mean_the_same_and_a_chat_template_is_folded_in(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ 'héllo' }}", encoding="utf-8")
    store = convert(checkpoint, tmp_path / "store", "q4_0")
    assert read_model(store / "config.json") == read_model(checkpoint / "config.json")
    old, new = (json.loads((folder / "tokenizer.json").read_text()) for folder in (checkpoint, store))
    assert new["model"]["vocab"] == old["model"]["vocab"] and new["added_tokens"] == old["added_tokens"]
    settings = json.loads((store / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["chat_template"] == "{{ 'héllo' }}"
    assert settings["eos_token"] == "<|im_end|>"


ROUTER = "model.layers.1.block_sparse_moe.primary_router.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({ROUTER: None}, f"'{ROUTER}' .* is missing"),
        ({ROUTER: np.zeros((3, 32), np.float32)}, rf"'{ROUTER}': expected shape \[3, 64\].*found \[3, 32\]"),
        ({ROUTER: np.zeros((3, 64), np.int8)}, f"'{ROUTER}': expected BF16, F16, F32, found I8"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}, r"unknown tensor .*q_proj\.bias"),
        ({ROUTER: np.full((3, 64), np.nan, np.float32)}, f"'{ROUTER}': .*found nan"),
        ({"model.norm.weight": np.full(64, -np.inf, np.float32)}, r"'model\.norm\.weight': .*found inf"),
        ({"lm_head.weight": np.full((300, 64), 1e5, np.float32)}, "at most 65504 for f16, found 100000"),
    ],
)
def test_faulty_checkpoints_name_the_tensor(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    as_single_file(checkpoint, "float32", change)
    with pytest.raises(CheckpointError, match=match):
        convert(checkpoint, tmp_path / "store", "f16")
    assert not (tmp_path / "store").exists()


def test_shards_without_their_index_are_named_and_so_is_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"shards are there, model-00001-of-\d+.safetensors first: download the index"
    ):
        convert(checkpoint, tmp_path / "store", "q4_0")
    for shard in list(checkpoint.glob("model-*"))[1:]:
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"rename model-.* to model.safetensors if it is the whole model"):
        convert(checkpoint, tmp_path / "store", "q4_0")


def test_missing_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises((CheckpointError, ConfigError), match=match):
            convert(checkpoint, tmp_path / "store", "q4_0")

    shard = next(checkpoint.glob("model-00002*"))
    content = shard.read_bytes()
    shard.unlink()
    refused(f"{shard.name}: missing")
    shard.write_bytes(content[:-1])
    refused(rf"{shard.name}: byte \d+: ")
    shard.write_bytes(content)
    (checkpoint / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused("tokenizer.json: missing")
    (tmp_path / "tokenizer.json").rename(checkpoint / "tokenizer.json")
    for file in checkpoint.glob("model*"):
        file.unlink()
    refused(r"neither model\.safetensors nor")
    (checkpoint / "config.json").unlink()
    refused(r"config\.json")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ("[", "not valid JSON"),
        ("[]", "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', r"names of \.safetensors files"),
        ('{"weight_map": {"a": "/tmp/x.safetensors"}}', r"names of \.safetensors files"),
        ('{"weight_map": {"a": "' + "a" * 300 + '.safetensors"}}', r"a\.safetensors: missing"),
        ('{"weight_map": {"a": "none.safetensors"}}', r"none\.safetensors: missing"),
    ],
)
def test_a_hostile_index_is_refused(checkpoint: Path, index: str, match: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(checkpoint)


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    (checkpoint / "copy.safetensors").write_bytes(next(checkpoint.glob("model-00001*")).read_bytes())
    index["weight_map"]["x"] = "copy.safetensors"
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is also in"):
        Checkpoint(checkpoint)


def test_an_unknown_quantisation_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="q4_0, q8_0, bf16, f16"):
        convert(tmp_path / "nothing", tmp_path / "store", "q3_k")


def test_a_conversion_that_is_killed_leaves_nothing(checkpoint: Path, tmp_path: Path, run_python: Run) -> None:
    script = """
import os, signal, sys
from smallthinker.expert_store.convert import convert
def progress(done, total, what):
    if what == "layers.1.experts.1": os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], "q4_0", progress=progress)
"""
    assert run_python(script, checkpoint, tmp_path / "store").returncode == -9
    assert not (tmp_path / "store").exists()


def test_memory_of_a_conversion_does_not_grow_with_the_model(tmp_path: Path, run_python: Run) -> None:
    config = TINY | {"hidden_size": 512, "vocab_size": 160_000, "head_dim": 128, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = synth(str(tmp_path / "config.json"), tmp_path / "checkpoint", "none")
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) > 160 << 20  # the embedding is 330 MB as float32
    script = """
import sys
from smallthinker import host
from smallthinker.expert_store.convert import convert
before = host.peak_memory_bytes()
convert(sys.argv[1], sys.argv[2], "q4_0")
print(host.peak_memory_bytes() - before)
"""
    run = run_python(script, checkpoint, tmp_path / "store")
    assert int(run.stdout) < 110 << 20, run.stderr


def test_the_library_reads_a_synthetic_checkpoint_as_we_do(checkpoint: Path) -> None:
    tensors = as_single_file(checkpoint, "float32")
    loaded = load_file(checkpoint / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    with Checkpoint(checkpoint) as source:
        for name, _ in checkpoint_places(source.config):
            value = loaded[checkpoint_name(source.config, name)]
            assert np.array_equal(source.read(name), value)
            assert np.array_equal(source.read(name, 1, 3), value[1:3])


def test_force_replaces_a_store_that_has_been_used(checkpoint: Path, tmp_path: Path) -> None:
    store = convert(checkpoint, tmp_path / "store", "q4_0")
    (store / FILE_NAME).write_bytes(b"what the first start packs")
    convert(checkpoint, store, "q4_0", force=True)
    assert not (store / FILE_NAME).exists() or (store / FILE_NAME).read_bytes() != b"what the first start packs"
