"""The same weights from safetensors and from a GGUF file, with llama.cpp's names, rows and keys, are the same model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_checkpoints import make_checkpoint
from gguf_files import F32, add_value, tokenizer_metadata
from safetensors.numpy import load_file

from smallthinker.errors import ConfigError
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.sources.gguf_checkpoint import GgufCheckpoint
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models import decoder
from smallthinker.models.description import Model
from smallthinker.models.registry import checkpoint_places, parse_model, to_config

# A case of family_checkpoints.py, and GGUF's architecture of it. Its converter can't say llama3 scaling as numbers,
# windows of qwen2, or layers of qwen3moe without experts.
ARCHITECTURES = {
    "smollm2": gguf.MODEL_ARCH.LLAMA,
    "llama biases": gguf.MODEL_ARCH.LLAMA,
    "llama linear": gguf.MODEL_ARCH.LLAMA,
    "mixtral whole": gguf.MODEL_ARCH.LLAMA,
    "qwen2 yarn": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
}

PERMUTED = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.SMOLLM3)


def metadata(model: Model) -> dict[str, Any]:
    """What llama.cpp's converter writes for it, without the architecture's prefix."""
    attention, ffn = model.layers[0].attention, model.layers[0].ffn
    rope = next(layer.attention.rope for layer in model.layers if layer.attention.rope)
    raw = to_config(model)
    assert ffn is not None
    facts: dict[str, Any] = {
        "block_count": model.num_layers,
        "context_length": model.context,
        "embedding_length": model.hidden_size,
        "feed_forward_length": raw.get("intermediate_size", 96),
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": model.final_norm.eps,
        "rope.freq_base": rope.theta,
    }
    if model.family in ("llama", "mixtral", "smollm3"):
        facts |= {"vocab_size": model.vocab_size, "rope.dimension_count": attention.head_dim}
    if ffn.router is not None:
        facts |= {"expert_count": ffn.router.experts, "expert_used_count": ffn.router.k}
    if model.family in ("qwen3_moe", "gpt_oss"):
        facts["expert_feed_forward_length"] = ffn.width
    if model.family == "gpt_oss":
        facts["attention.sliding_window"] = attention.window
    scaling = raw["rope_scaling"]
    if scaling is not None:
        names = {
            "factor": "factor", "rope_type": "type", "original_max_position_embeddings": "original_context_length",
            "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow",
        }  # fmt: skip
        facts |= {f"rope.scaling.{name}": scaling[key] for key, name in names.items() if key in scaling}
    return facts


def llama_cpp_tensors(folder: Path, model: Model, architecture: gguf.MODEL_ARCH) -> dict[str, F32]:
    """A checkpoint's tensors as the converter names and turns them."""
    names, heads = gguf.get_tensor_name_map(architecture, model.num_layers), model.layers[0].attention
    found: dict[str, F32] = {}
    stacks: dict[str, list[F32]] = {}
    for name, values in sorted(load_file(folder / "model.safetensors").items(), key=lambda item: _numbers(item[0])):
        if architecture in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.SMOLLM3) and (
            ".q_proj." in name or ".k_proj." in name
        ):
            count = heads.heads if ".q_proj." in name else heads.kv_heads
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        if ".experts.gate_up_proj" in name:
            for part, start in (("gate_proj", 0), ("up_proj", 1)):
                half = values[..., start::2]
                found[name.replace("gate_up_proj", part)] = half if half.ndim == 2 else half.swapaxes(1, 2)
        elif ".experts.down_proj" in name:
            found[name] = values if values.ndim == 2 else values.swapaxes(1, 2)
        elif ".experts." in name:
            before, _, after = name.partition(".experts.")
            stacks.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(values)
        else:
            found[name] = values
    found |= {name: np.stack(each) for name, each in stacks.items()}
    return {_gguf_name(names, name): np.ascontiguousarray(values) for name, values in found.items()}


def _numbers(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _gguf_name(names: Any, name: str) -> str:
    base, suffix = name, ".weight"
    for ending, its_suffix in ((".weight", ".weight"), (".bias", ".bias"), ("_bias", ".bias")):
        if name.endswith(ending):
            base, suffix = name.removesuffix(ending), its_suffix
            break
    return f"{names.get_name(base)}{suffix}"


def write(
    folder: Path,
    path: Path,
    architecture: gguf.MODEL_ARCH,
    kind: str = "F32",
    raw: Mapping[str, Any] | None = None,
    more: Mapping[str, F32] | None = None,
) -> Path:
    """A GGUF file. raw: blocks of some tensors, with their type; more: tensors that the model doesn't have."""
    model = parse_model(_config(folder))
    for name, content in byte_tokenizer_files(model).items():
        (folder / name).write_bytes(content)
    prefix = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, prefix)
    facts = {f"{prefix}.{key}": value for key, value in metadata(model).items()}
    for key, value in (facts | tokenizer_metadata(folder)).items():
        add_value(writer, key, value)
    qtype = gguf.GGMLQuantizationType[kind]
    for name, values in {**llama_cpp_tensors(folder, model, architecture), **(more or {})}.items():
        if name in (raw or {}):
            blocks, blocks_type = (raw or {})[name]
            writer.add_tensor(name, blocks, raw_dtype=blocks_type)
        elif values.ndim > 1 and "gate_inp" not in name and not name.endswith(".bias"):
            writer.add_tensor(name, gguf.quantize(values, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_weights_are_the_same_model(name: str, tmp_path: Path) -> None:
    case = make_checkpoint(name, tmp_path / "checkpoint")
    path = write(case.folder, tmp_path / "tiny.gguf", ARCHITECTURES[name])
    with Checkpoint(case.folder) as expected, closing(GgufCheckpoint(path)) as found:
        ours, theirs = to_config(found.config), to_config(expected.config)
        assert ours == {key: ours[key] if isinstance(value, float) else value for key, value in theirs.items()}
        for tensor, _ in checkpoint_places(expected.config):
            assert np.array_equal(found.read(tensor), expected.read(tensor)), tensor
            assert np.array_equal(found.read(tensor, 1, 3), expected.read(tensor, 1, 3)), tensor


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q4_K"])
def test_slices_of_blocks_are_those_of_the_whole_matrix(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where down's blocks are wider than a slice: 256 columns and 64."""
    case = make_checkpoint("wide", tmp_path / "checkpoint")
    values, raw = load_file(case.folder / "model.safetensors"), {}
    rows = {role: values[f"model.layers.0.mlp.{role}_proj.weight"] for role in ("gate", "down")}
    if kind == "Q4_K":
        blocks = np.random.default_rng(0).integers(0, 256, (64, 2 * 144), np.uint8)
        blocks.reshape(64, 2, 144)[..., :4] = np.array([0.25, 0.125], np.float16).view(np.uint8)
        raw["blk.0.ffn_down.weight"] = blocks, gguf.GGMLQuantizationType.Q4_K
        rows["down"] = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    elif kind != "F32":
        qtype = gguf.GGMLQuantizationType[kind]
        rows = {role: gguf.dequantize(gguf.quantize(of, qtype), qtype) for role, of in rows.items()}
    path = write(case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, "F32" if raw else kind, raw)
    monkeypatch.setattr(decoder, "_RECORD_BYTES", 3 * 64 * 64 * 4.5 / 8)
    with closing(GgufCheckpoint(path)) as source:
        assert source.config.layers[0].ffn is not None and source.config.layers[0].ffn.slices == 8
        for n in range(8):
            part = slice(64 * n, 64 * n + 64)
            for role, expected in (("gate", rows["gate"][part]), ("down", rows["down"][:, part])):
                name = f"layers.0.{role}.{n}"
                assert np.array_equal(source.read(name), expected)
                assert np.array_equal(source.read(name, 2, 9), expected[2:9])
                if kind in ("Q8_0", "Q4_0"):
                    found = source.blocks(name, kind.lower(), 2, 9)  # type: ignore[arg-type]
                    assert found is not None
                    flat = found.reshape(7, -1)
                    assert np.array_equal(gguf.dequantize(flat, gguf.GGMLQuantizationType[kind]), expected[2:9])


def test_factors_of_rotary_positions_are_refused_by_their_tensor(tmp_path: Path) -> None:
    """llama.cpp's converter makes them of llama3 scaling, whose numbers it leaves out."""
    case = make_checkpoint("smollm2", tmp_path / "checkpoint")
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write(case.folder, tmp_path / "tiny.gguf", gguf.MODEL_ARCH.LLAMA, more=factors)
    with pytest.raises(ConfigError, match=r"llama\.rope\.scaling: expected .* rope_freqs\.weight"):
        GgufCheckpoint(path)
