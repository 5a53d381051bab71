"""A store's description as lines for people. Knows nothing about how the facts were gathered (expert_store.inspect)."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20


def inspection_text(facts: dict[str, Any]) -> str:
    """facts: what `expert_store.inspect.describe` returns."""
    model, experts, sizes = facts["model"], facts["experts"], facts["bytes"]
    layers = model["num_hidden_layers"]
    head = "tied head" if model["tie_word_embeddings"] else "head of its own"
    dense = ", ".join(f"{name} {_mib(size)}" for name, size in sizes["dense_parts"].items())
    files = ", ".join(f"{name} {_mib(size)}" for name, size in sizes["files"].items())
    rows = {
        "format": f"{facts['format']}, written by {facts['engine_version']}",
        "weights": f"{facts['quant']}, {facts['bits_per_parameter']:.2f} bits a parameter",
        "checksums": facts["checksums"],
        "parameters": f"{facts['parameters']:,}",
        "shape": f"{layers} layers, hidden {model['hidden_size']}, vocabulary {model['vocab_size']} ({head})",
        "attention": f"{model['num_attention_heads']} query and {model['num_key_value_heads']} key/value heads of "
        f"{model['head_dim']}, RoPE in {sum(model['rope_layout'])} layers, window of {model['sliding_window_size']} in "
        f"{sum(model['sliding_window_layout'])}, context {model['max_position_embeddings']}",
        "experts": f"{experts['per_layer']} a layer, {experts['per_token']} a token, {experts['total']} in all, "
        f"{_mib(experts['record_bytes'])} each, {_mib(experts['token_bytes'])} a token",
        "compression": _compression(experts, sizes["experts"]),
        "dense": f"{_mib(sizes['dense'])}: {dense}",
        "on disk": f"{_mib(sizes['total'])}: {files}",
    }
    return "\n".join([facts["path"], *(f"  {name:<12}{value}" for name, value in rows.items())])


def _compression(experts: dict[str, Any], experts_bytes: int) -> str:
    if experts["compression"] is None:
        return "none"
    return (
        f"{experts['compression']}, {experts['compressed']} of {experts['total']} experts; {_mib(experts_bytes)} take "
        f"{_mib(experts['stored_bytes'])}, {experts['compression_ratio']:.1%}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= 100_000 else f"{size:,} bytes"
