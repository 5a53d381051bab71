"""What a store holds, as plain data for `smallthinker inspect`. Prints nothing, reads no weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

from smallthinker.expert_store.format import COMPRESSION
from smallthinker.expert_store.store import Store
from smallthinker.models.description import Attention, Model
from smallthinker.models.registry import to_config
from smallthinker.models.tensors import num_parameters


def describe(store: Store) -> dict[str, Any]:
    """Shapes, bytes of each part, experts and quantisation of a store: only text, numbers, lists and dictionaries."""
    config = store.config
    parts = next({part.role: part.offset for part in layout.sections} for layout in store.record_layouts if layout)
    dense: dict[str, int] = {}
    for name in store.dense_names():
        part = _part(name)
        dense[part] = dense.get(part, 0) + store.dense_spec(name).nbytes
    is_folder = store.path.is_dir()
    paths = [path for path in sorted(store.path.iterdir()) if path.is_file()] if is_folder else store.weight_files
    files = {path.name: path.stat().st_size for path in paths}
    experts_bytes = store.num_experts * store.record_bytes
    return {
        "path": str(store.path),
        "format": store.kind,
        "engine_version": store.engine_version,
        "quant": store.quant,
        "other_formats": dict(store.formats.others),
        "parameters": num_parameters(config),
        "model": to_config(config),
        "shape": {
            "family": config.family,
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "vocabulary": config.vocab_size,
            "context": config.context,
            "tied_head": config.head.tied,
            "attention": _attention(config),
        },
        "experts": {
            "layers": config.num_layers,
            "records": config.records_are,
            "dense_layers": len(config.certain_layers),
            "per_layer": config.experts_per_layer,
            "per_token": config.experts_per_token,
            "total": store.num_experts,
            "record_bytes": store.record_bytes,
            "up_offset": parts["up"],
            "down_offset": parts["down"],
            "compression": COMPRESSION if store.is_compressed else None,
            "compressed": store.num_compressed,
            "stored_bytes": store.on_disk_bytes,
            "compression_ratio": store.on_disk_bytes / experts_bytes,
            "token_bytes": sum(config.used_of_layers) * store.record_bytes,
        },
        "bytes": {
            "dense": store.dense_bytes,
            "dense_parts": dense,
            "tables": store.table_bytes,
            "experts": experts_bytes,
            "total": sum(files.values()),
            "files": files,
        },
        "bits_per_parameter": 8 * (store.dense_bytes + store.table_bytes + experts_bytes) / num_parameters(config),
    }


def _attention(config: Model) -> dict[str, Any]:
    """Of the layers that have it; each list has what is found in some layer, in order."""
    found = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    windows = Counter(mixer.window for mixer in found if mixer.window)
    return {
        "layers": len(found),
        "heads": sorted({mixer.heads for mixer in found}),
        "kv_heads": sorted({mixer.kv_heads for mixer in found}),
        "head_dim": sorted({mixer.head_dim for mixer in found}),
        "with_rope": sum(mixer.rope is not None for mixer in found),
        "windows": [[window, layers] for window, layers in sorted(windows.items())],
    }


def _part(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    if last in ("q_proj", "k_proj", "v_proj", "o_proj"):
        return "attention"
    return "norms" if "norm" in last else last
