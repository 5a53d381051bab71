"""Tiny random models for tests: configurations, checkpoints with the published tensor names, and stores of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models.description import Layer, Model
from smallthinker.models.registry import checkpoint_places, parse_model, to_config

if TYPE_CHECKING:  # torch takes two seconds to import, and most tests want only a configuration
    from smallthinker.reference import ReferenceModel

# The 4B's kind: sigmoid gates, rotary positions everywhere, whole attention, tied head.
DENSE_ATTENTION: dict[str, Any] = {
    "moe_primary_router_apply_softmax": False,
    "rope_layout": [1, 1, 1],
    "sliding_window_layout": [0, 0, 0],
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
}
# The 21B's kind: softmax gates, one NoPE layer then three with a window, a head of its own.
HYBRID_ATTENTION: dict[str, Any] = {
    "moe_primary_router_apply_softmax": True,
    "rope_layout": [0, 1, 1, 1],
    "sliding_window_layout": [0, 1, 1, 1],
    "num_hidden_layers": 4,
    "sliding_window_size": 12,
    "tie_word_embeddings": False,
}


def tiny_config(**overrides: Any) -> Model:
    return parse_model(
        {
            "architectures": ["SmallThinkerForCausalLM"],
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "moe_num_primary_experts": 8,
            "moe_num_active_primary_experts": 2,
            "moe_ffn_hidden_size": 32,
            "vocab_size": 300,
            "max_position_embeddings": 512,
            "rope_theta": 10000.0,
            "bos_token_id": 298,
            "eos_token_id": [298, 299],
        }
        | DENSE_ATTENTION
        | overrides
    )


def behind_attention(config: Model) -> Model:
    """The same with routers that read what the experts read."""

    def late(layer: Layer) -> Layer:
        assert layer.ffn is not None
        return replace(layer, ffn=replace(layer.ffn, router=replace(layer.router, reads="ffn_input")))

    return replace(config, family="described", layers=tuple(map(late, config.layers)))


def random_reference(config: Model, seed: int = 0) -> ReferenceModel:
    """Weights large enough that every part matters in the logits, rounded to bfloat16 as in published checkpoints."""
    import torch

    from smallthinker.reference import ReferenceModel

    torch.manual_seed(seed)
    model = ReferenceModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_weights().items():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5)
            elif "embed_tokens" in name:
                p.normal_()
            elif "router" in name:
                p.normal_(std=1.5 * p.shape[1] ** -0.5)
            else:
                p.normal_(std=1.2 * p.shape[1] ** -0.5)
            p.copy_(p.bfloat16().float())
    return model


def write_checkpoint(model: ReferenceModel, folder: Path) -> Path:
    """A Hugging Face folder: config.json, model.safetensors in bfloat16, a byte-level tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_config(model.model)))
    for name, content in byte_tokenizer_files(model.model).items():
        (folder / name).write_bytes(content)
    save_file(checkpoint_weights(model), folder / "model.safetensors")
    return folder


def checkpoint_weights(model: ReferenceModel) -> dict[str, Any]:
    """The tensors of its checkpoint, in bfloat16."""
    import torch

    files: dict[str, torch.Tensor] = {}
    for name, place in checkpoint_places(model.model):
        whole = files.setdefault(place.name, torch.empty(place.stored_shape, dtype=torch.bfloat16))
        if place.is_zero:
            continue
        weight = model.weight(name).detach()
        weight = weight.T if place.transposed else weight
        part = whole.view(-1, place.stored_shape[-1])[place.rows.start : place.rows.stop : place.rows.step]
        part[:, place.cols.start : place.cols.stop : place.cols.step] = weight.reshape(len(place.rows), -1)
    return files


def make_store(config: Model, folder: Path, quant: str = "f16", seed: int = 0) -> tuple[Path, ReferenceModel]:
    """A store of a random model below `folder`, and the reference model with the same weights."""
    model = random_reference(config, seed)
    checkpoint = write_checkpoint(model, folder / "checkpoint")
    return convert(checkpoint, folder / "store", quant), model
