"""GGUF files of the families' tiny checkpoints as llama.cpp's converter writes them: its names, rows and keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_files import F32, add_value, tokenizer_metadata
from safetensors.numpy import load_file

from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models import description as d
from smallthinker.models.description import Model
from smallthinker.models.registry import parse_model, to_config

# A case of family_checkpoints.py, and GGUF's architecture of it. Its converter can't say windows of mistral and qwen2,
# another scale than a head's of gemma3, or layers of qwen3moe without experts.
ARCHITECTURES = {
    "llama 3": gguf.MODEL_ARCH.LLAMA,
    "mistral nemo": gguf.MODEL_ARCH.LLAMA,
    "smollm2": gguf.MODEL_ARCH.LLAMA,
    "llama biases": gguf.MODEL_ARCH.LLAMA,
    "llama linear": gguf.MODEL_ARCH.LLAMA,
    "llama proportional": gguf.MODEL_ARCH.LLAMA,
    "mixtral whole": gguf.MODEL_ARCH.LLAMA,
    "qwen2 yarn": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "gpt_oss limits as published": gguf.MODEL_ARCH.GPT_OSS,
    "gemma3 scaled as heads": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "phi3 plain": gguf.MODEL_ARCH.PHI3,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "llama4 whole": gguf.MODEL_ARCH.LLAMA4,
    "gemma4 experts": gguf.MODEL_ARCH.GEMMA4,
    "gemma4 shared keys": gguf.MODEL_ARCH.GEMMA4,
    "gemma4 small": gguf.MODEL_ARCH.GEMMA4,
    "gemma4 narrow inputs": gguf.MODEL_ARCH.GEMMA4,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "glm4_moe groups": gguf.MODEL_ARCH.GLM4_MOE,
}
# Those whose converter moves rows of q and k.
PERMUTED = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.SMOLLM3, gguf.MODEL_ARCH.MISTRAL3)


def metadata(model: Model) -> dict[str, Any]:
    """What the converter writes for it, without the architecture's prefix."""
    attention, last = model.layers[0].attention, model.layers[-1]
    rope, ffn = next(layer.attention.rope for layer in model.layers if layer.attention.rope), last.ffn
    raw, family = to_config(model), model.family
    assert ffn is not None
    facts: dict[str, Any] = {
        "block_count": model.num_layers,
        "context_length": model.context,
        "embedding_length": model.hidden_size,
        "feed_forward_length": raw.get("intermediate_size", 96),
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.layer_norm_rms_epsilon": model.final_norm.eps,
        "rope.freq_base": rope.theta,
    }
    if family != "phi3":
        facts |= {"attention.key_length": attention.head_dim, "attention.value_length": attention.head_dim}
    if family in ("llama", "mistral", "mixtral", "smollm3", "phi3", "glm4_moe", "ministral3", "llama4_text"):
        facts |= {"vocab_size": model.vocab_size, "rope.dimension_count": rope.size}
    if ffn.router is not None:
        facts |= {"expert_count": ffn.router.experts, "expert_used_count": ffn.router.k}
    if family in ("qwen3_moe", "gpt_oss", "glm4_moe"):
        facts["expert_feed_forward_length"] = ffn.width
    if family in ("gpt_oss", "gemma3_text", "phi3"):
        facts["attention.sliding_window"] = raw["sliding_window"] or 0
    if family == "gemma3_text":
        positions = raw["rope_parameters"]
        facts |= {"rope.freq_base_swa": positions["sliding_attention"]["rope_theta"]}
        facts |= {"rope.freq_base": positions["full_attention"]["rope_theta"]}
    if family == "glm4_moe" and ffn.router is not None:
        facts |= {
            "expert_shared_count": raw["n_shared_experts"], "expert_gating_func": 2,
            "expert_weights_norm": ffn.router.normalise,
            "leading_dense_block_count": raw["first_k_dense_replace"], "expert_weights_scale": ffn.router.scale,
            "expert_group_count": ffn.router.groups, "expert_group_used_count": ffn.router.kept_groups,
            "nextn_predict_layers": 0,
        }  # fmt: skip
    if family == "gemma4_text":
        full, sliding, types = last.attention, attention, raw["layer_types"]
        assert full.rope is not None
        facts |= {
            "attention.head_count_kv": [layer.attention.kv_heads for layer in model.layers],
            "attention.key_length": full.head_dim, "attention.value_length": full.head_dim,
            "attention.key_length_swa": sliding.head_dim, "attention.value_length_swa": sliding.head_dim,
            "rope.dimension_count": full.head_dim, "rope.dimension_count_swa": sliding.head_dim,
            "rope.freq_base": full.rope.theta, "rope.freq_base_swa": rope.theta,
            "attention.sliding_window": sliding.window, "final_logit_softcapping": model.head.softcap,
            "attention.shared_kv_layers": raw["num_kv_shared_layers"],
            "embedding_length_per_layer_input": raw["hidden_size_per_layer_input"],
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in types],
        }  # fmt: skip
        if raw["use_double_wide_mlp"]:
            shared = [layer.attention.kv_of is not None for layer in model.layers]
            facts["feed_forward_length"] = [raw["intermediate_size"] * (2 if one else 1) for one in shared]
        if raw["enable_moe_block"]:
            facts["expert_feed_forward_length"] = ffn.width
    if family == "ministral3" and attention.growth is not None:
        facts |= {"attention.temperature_scale": attention.growth.beta, "rope.scaling.yarn_log_multiplier": 1.0}
    if family == "llama4_text":
        facts |= {
            "interleave_moe_layer_step": 0, "expert_feed_forward_length": 96, "expert_count": 128,
            "expert_used_count": 1, "feed_forward_length": raw["intermediate_size_mlp"], "attention.sliding_window": 0,
        }  # fmt: skip
    return facts | {f"rope.scaling.{key}": value for key, value in _scaling(rope).items()}


def _scaling(rope: d.Rope) -> dict[str, Any]:
    scaling = rope.scaling
    if isinstance(scaling, d.LinearScaling):
        return {"type": "linear", "factor": scaling.factor}
    if isinstance(scaling, d.YarnScaling):
        return {
            "type": "yarn", "factor": scaling.factor, "original_context_length": scaling.original_context,
            "yarn_beta_fast": scaling.beta_fast, "yarn_beta_slow": scaling.beta_slow,
        }  # fmt: skip
    if isinstance(scaling, d.LongRopeScaling):
        return {"original_context_length": scaling.original_context, "attn_factor": scaling.attention_factor}
    return {}


def _factors(rope: d.Rope) -> dict[str, F32]:
    """Tensors that say by how much each pair's frequency is divided."""
    scaling = rope.scaling
    if rope.turning is not None:
        return {"rope_freqs.weight": np.float32([1.0] * rope.turning + [1e30] * (rope.size // 2 - rope.turning))}
    if isinstance(scaling, d.LongRopeScaling):
        return {f"rope_factors_{part}.weight": np.float32(getattr(scaling, part)) for part in ("long", "short")}
    if not isinstance(scaling, d.Llama3Scaling):
        return {}
    factors = []
    for pair in range(rope.size // 2):
        turns = scaling.original_context / (2 * math.pi * rope.theta ** (2 * pair / rope.size))
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / scaling.factor + kept))
    return {"rope_freqs.weight": np.float32(factors)}


def llama_cpp_tensors(folder: Path, model: Model, architecture: gguf.MODEL_ARCH) -> dict[str, F32]:
    """A checkpoint's tensors as the converter names and turns them."""
    names, heads = gguf.get_tensor_name_map(architecture, model.num_layers), model.layers[0].attention
    found: dict[str, F32] = {}
    stacks: dict[str, list[F32]] = {}
    for name, values in sorted(load_file(folder / "model.safetensors").items(), key=lambda item: _numbers(item[0])):
        if architecture in PERMUTED and (".q_proj." in name or ".k_proj." in name):
            count = heads.heads if ".q_proj." in name else heads.kv_heads
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        if architecture == gguf.MODEL_ARCH.GEMMA3 and "norm" in name:
            values = values + 1
        if architecture == gguf.MODEL_ARCH.GEMMA4 and _gemma4_name(names, name):
            found[_gemma4_name(names, name)] = values
        elif ".experts.gate_up_proj" in name:
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
    rope = next(layer.attention.rope for layer in reversed(model.layers) if layer.attention.rope)
    renamed = {
        name if name.startswith("blk.") else _gguf_name(names, name): np.ascontiguousarray(values)
        for name, values in found.items()
    }
    return renamed | _factors(rope)


def _gemma4_name(names: Any, name: str) -> str:
    """Of what its converter names by itself."""
    ends = {
        "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
        "layer_scalar": "layer_output_scale.weight", "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }  # fmt: skip
    end = next((end for end in ends if name.endswith(end)), None)
    return "" if end is None else f"blk.{name.split('.')[2]}.{ends[end]}"


def _numbers(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _gguf_name(names: Any, name: str) -> str:
    base, suffix = name, ".weight"
    for ending, its_suffix in ((".weight", ".weight"), (".bias", ".bias"), ("_bias", ".bias")):
        if name.endswith("e_score_correction_bias"):
            base, suffix = name.removesuffix("_bias"), ".bias"
            break
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
    model = parse_model(json.loads((folder / "config.json").read_text()))
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
