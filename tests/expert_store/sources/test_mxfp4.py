"""Experts that a checkpoint has packed as MXFP4 mean what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from family_checkpoints import make_checkpoint
from reading import unpack_expert
from safetensors.torch import load_file, save_file

from smallthinker.errors import CheckpointError, ConfigError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.sources.mxfp4 import unpack
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint whose experts are random blocks, and what they mean to transformers, by name, [E, C, R]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = make_checkpoint("gpt_oss", tmp_path / "checkpoint").folder
    tensors, meant = load_file(folder / "model.safetensors"), {}
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, cols, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, cols // 32, 16), dtype=torch.uint8, generator=random)
        scales = torch.randint(118, 130, (experts, rows, cols // 32), dtype=torch.uint8, generator=random)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder, meant


def test_packed_experts_mean_what_transformers_makes_of_them(packed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, meant = packed
    with Checkpoint(folder) as source:
        for layer in range(source.config.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            gate_up, down = meant[f"{prefix}gate_up_proj"].numpy(), meant[f"{prefix}down_proj"].numpy()
            for expert in range(8):
                expected = {"gate": gate_up[expert, :, ::2].T, "up": gate_up[expert, :, 1::2].T, "down": down[expert].T}
                for role, weights in expected.items():
                    name = f"layers.{layer}.{role}.{expert}"
                    assert np.array_equal(source.read(name), weights), name
                    assert np.array_equal(source.read(name, 3, 10), weights[3:10]), name


def test_packed_experts_stay_as_they_are_in_a_store(
    packed: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, _ = packed
    with Checkpoint(folder) as source:
        for name, data in byte_tokenizer_files(source.config).items():
            (folder / name).write_bytes(data)
    with Store.open(convert(folder, tmp_path / "store")) as store, Checkpoint(folder) as source:
        assert store.formats.of_experts(0) == ("mxfp4",) * 3
        assert store.formats.of("q_proj", 0) == "q4_0"
        for layer in range(source.config.num_layers):
            for expert in (0, 7):
                for role, kept in zip(("gate", "up", "down"), unpack_expert(store, layer, expert), strict=True):
                    np.testing.assert_array_equal(kept, source.read(f"layers.{layer}.{role}.{expert}"))


def test_a_scale_of_255_is_no_number() -> None:
    scales = np.array([[255, 0]], np.uint8)
    found = unpack(np.full((1, 2, 16), 0x22, np.uint8), scales)
    assert np.isnan(found[0, :32]).all() and (found[0, 32:] == 2.0**-127).all()


def test_packed_tensors_of_another_shape_and_other_packings_are_refused(
    packed: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, _ = packed
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_scales': expected shape \[8, 64, 3\]"):
        Checkpoint(folder)
    save_file(tensors | {name: tensors[name].float()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_scales': expected U8, found F32"):
        Checkpoint(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj' \[8, 96, 64\] is missing"):
        Checkpoint(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"]["dequantize"] = True
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="quantization_config: only none is supported"):
        Checkpoint(folder)
