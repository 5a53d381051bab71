"""GGUF files of tiny models, written by the package gguf with the names that it gives to a checkpoint's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.models.registry import checkpoint_name, checkpoint_places

F32 = npt.NDArray[np.float32]
MERGED = ("he", "ll")  # tokens of two bytes beside those of one
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def rounded_checkpoint(checkpoint: Path, kind: str, *, transposed_down: bool = False) -> dict[str, F32]:
    """The checkpoint with its matrices rounded to a type of GGUF, in place, as one file of float32; its tensors."""
    qtype = gguf.GGMLQuantizationType[kind]
    with Checkpoint(checkpoint) as source:
        tensors = own_tensors(source)
    for name, weights in tensors.items():
        if weights.ndim > 1 and "router" not in name:
            turned = transposed_down and name.endswith(".down.weight")
            rows = np.ascontiguousarray(weights.T) if turned else weights
            rows = gguf.dequantize(gguf.quantize(rows, qtype), qtype)
            tensors[name] = np.ascontiguousarray(rows.T) if turned else rows
    for file in checkpoint.glob("model*"):
        file.unlink()
    save_file(tensors, checkpoint / "model.safetensors")
    return tensors


def own_tensors(source: Checkpoint) -> dict[str, F32]:
    """By the checkpoint's names, of a family whose files have each tensor and each expert's matrix on its own."""
    return {checkpoint_name(source.config, name): source.read(name) for name, _ in checkpoint_places(source.config)}


def metadata_of(checkpoint: Path) -> dict[str, Any]:
    """What llama.cpp's converter writes for this model, as far as it means something; a byte-level vocabulary."""
    config = Checkpoint(checkpoint).config
    layer, windows = config.layers[-1], {layer.attention.window for layer in config.layers} - {0}
    thetas = [other.attention.rope.theta for other in config.layers if other.attention.rope]
    facts: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "attention.head_count": layer.attention.heads,
        "attention.head_count_kv": layer.attention.kv_heads,
        "attention.key_length": layer.attention.head_dim,
        "attention.value_length": layer.attention.head_dim,
        "attention.layer_norm_rms_epsilon": config.final_norm.eps,
        "rope.freq_base": thetas[0],
        "expert_count": config.experts_per_layer,
        "expert_used_count": config.experts_per_token,
        "expert_feed_forward_length": config.ffn_width,
        "feed_forward_length": config.ffn_width,
        "expert_gating_func": 1 if layer.router.score == "softmax" else 2,
        "vocab_size": config.vocab_size,
    }
    if windows:
        (facts["attention.sliding_window"],) = windows
    return {f"smallthinker.{key}": value for key, value in facts.items()} | tokenizer_metadata(checkpoint)


def tokenizer_metadata(checkpoint: Path) -> dict[str, Any]:
    """A byte-level vocabulary as llama.cpp's converter writes it, whatever the model."""
    config = Checkpoint(checkpoint).config
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in tokenizer["model"]["vocab"].items()} | special
    free = (i for i in range(config.vocab_size) if i not in by_id)
    by_id |= zip(free, MERGED, strict=False)
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    ids = {"bos": config.tokens.bos, "eos": next(iter(config.tokens.eos), None)}
    return {
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i in special else 1 if i in by_id else 5 for i in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(token) for token in MERGED],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
    }


def gguf_tensors(
    tensors: Mapping[str, F32], layers: int, experts: int, *, transposed_down: bool = False
) -> dict[str, F32]:
    """A checkpoint's tensors under GGUF's names, those of a layer's experts together."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.SMALLTHINKER, layers)
    merged = {name: weights for name, weights in tensors.items() if ".experts." not in name}
    for layer in range(layers):
        for part in ("down", "gate", "up"):
            prefix = f"model.layers.{layer}.block_sparse_moe.experts"
            each = [tensors[f"{prefix}.{expert}.{part}.weight"] for expert in range(experts)]
            turned = transposed_down and part == "down"
            merged[f"{prefix}.{part}.weight"] = np.stack([weights.T for weights in each] if turned else each)
    return {f"{names.get_name(name.removesuffix('.weight'))}.weight": weights for name, weights in merged.items()}


def write_gguf(
    checkpoint: Path,
    path: Path,
    kind: str = "F32",
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    transposed_down: bool = False,
    part_tensors: int = 0,
    architecture: str = "smallthinker",
) -> Path:
    """A GGUF file of a checkpoint's values, matrices in `kind`, vectors and routers in F32. metadata, tensors: what
    replaces or joins the model's own, None removes. part_tensors: in parts of so many tensors; returns the first."""
    with Checkpoint(checkpoint) as source:
        config = source.config
        values = own_tensors(source)
    named: dict[str, Any] = dict(
        gguf_tensors(values, config.num_layers, config.experts_per_layer, transposed_down=transposed_down)
    )
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_tensors)
    for key, value in (metadata_of(checkpoint) | dict(metadata or {})).items():
        add_value(writer, key, value)
    qtype = gguf.GGMLQuantizationType[kind]
    for name, value in (named | dict(tensors or {})).items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim > 1 and "gate_inp" not in name:
            writer.add_tensor(name, gguf.quantize(value, qtype), raw_dtype=qtype)
        elif value is not None:
            array, raw_dtype = value if isinstance(value, tuple) else (value, None)
            writer.add_tensor(name, array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if part_tensors else path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
