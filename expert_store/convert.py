"""Converts a Hugging Face checkpoint into a store: every matrix quantised and laid out as the kernels read it.

Owns which tensor is packed how. Streams: a strip of rows or one expert is in memory at a time. Knows nothing about
file formats (`checkpoint` reads, `writer` writes) or the arithmetic of quantisation (the kernels').
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import CheckpointError
from smallthinker.expert_store.checkpoint import Checkpoint, checkpoint_name, expert_tensor
from smallthinker.expert_store.format import (
    CONFIG_FILE,
    TILE_ROWS,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Quant,
    RecordLayout,
    TensorSpec,
    check_quant,
)
from smallthinker.expert_store.progress import Progress
from smallthinker.expert_store.writer import StoreWriter

CHAT_TEMPLATE_FILE = "chat_template.jinja"

_STRIP_BYTES = 32 << 20  # of float32 rows: the embedding alone is 1.5 GB
_F16_MAX = 65504.0
_LARGEST_WEIGHT = {
    "f32": float(np.finfo(np.float32).max),
    "f16": _F16_MAX,
    "q8_0": 127 * _F16_MAX,
    "q4_0": 8 * _F16_MAX,
}


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str,
    force: bool = False,
    progress: Progress | None = None,
    compress: int | None = None,
) -> Path:
    """Convert the checkpoint in a folder into a store at `out`; returns its path.

    quant: q4_0, q8_0, f16 or f32 (exact, for tests). Stays under 1 GiB of memory for a model of any size. Routers and
    norms are kept in float32. `force` replaces a store that is there, after the new one is whole. `compress` is a zstd
    level, 1 to 19, for the experts.
    Raises ConfigError (also for an unknown quantisation or level), CheckpointError, StoreWriteError.
    """
    kind = check_quant(quant)
    folder = Path(checkpoint)
    with Checkpoint(folder) as source:
        config = source.config
        with StoreWriter(Path(out), config, kind, _small_files(folder), force, progress, compress=compress) as writer:
            for spec in writer.dense_specs:
                writer.write_dense(spec, _dense_pieces(source, spec))
            records = iter(writer.expert_specs)
            for layer in range(config.num_hidden_layers):
                for expert in range(config.moe_num_primary_experts):
                    record = pack_expert(
                        kind, *(_checked(source, expert_tensor(layer, expert, p), kind) for p in ("gate", "up", "down"))
                    )
                    writer.write_expert(next(records), [record.data])
    return Path(out)


def pack_expert(
    quant: Quant, gate: npt.NDArray[np.float32], up: npt.NDArray[np.float32], down: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """The record of an expert, uint8 [record_bytes]. gate, up: [F, d]; down: [d, F] as in a checkpoint."""
    ffn, hidden = gate.shape
    layout = RecordLayout.of(quant, hidden, ffn)
    record = np.zeros(layout.record_bytes, np.uint8)
    parts = (
        (0, _kernels.pack(quant, "tiles", gate)),
        (layout.up_offset, _kernels.pack(quant, "rows", up)),
        (layout.down_offset, _kernels.pack(quant, "rows", np.ascontiguousarray(down.T))),
    )
    for offset, packed in parts:
        record[offset : offset + packed.nbytes] = packed
    return record


def _dense_pieces(source: Checkpoint, spec: TensorSpec) -> Iterator[memoryview]:
    name = checkpoint_name(spec.name)
    if spec.quant is None:
        yield _checked(source, name, "f32").view(np.uint8).data
        return
    rows, cols = spec.shape
    strip = max(_STRIP_BYTES // (4 * cols) // TILE_ROWS, 1) * TILE_ROWS  # whole tiles: strips join without a seam
    for start in range(0, rows, strip):
        yield _kernels.pack(spec.quant, "tiles", _checked(source, name, spec.quant, start, start + strip)).data


def _checked(
    source: Checkpoint, name: str, quant: Quant, start: int = 0, stop: int | None = None
) -> npt.NDArray[np.float32]:
    weights = source.read(name, start, stop)
    largest = max(float(weights.max()), -float(weights.min()))  # NaN and infinity come through
    if not largest <= _LARGEST_WEIGHT[quant]:
        raise CheckpointError(
            f"{source.path}: tensor '{name}': expected weights of at most {_LARGEST_WEIGHT[quant]:.6g} for {quant}, "
            f"found {largest}; the checkpoint is damaged or needs another quantisation"
        )
    return weights


def _small_files(folder: Path) -> dict[str, bytes]:
    """config.json and the tokenizer's files, a separate chat template folded into the tokenizer's configuration."""
    try:
        files = {CONFIG_FILE: (folder / CONFIG_FILE).read_bytes()}
        if not (folder / TOKENIZER_FILE).is_file():
            raise CheckpointError(f"{folder / TOKENIZER_FILE}: missing; download the tokenizer too")
        files[TOKENIZER_FILE] = (folder / TOKENIZER_FILE).read_bytes()
        tokenizer_config = folder / TOKENIZER_CONFIG_FILE
        if tokenizer_config.is_file():
            files[TOKENIZER_CONFIG_FILE] = tokenizer_config.read_bytes()
        template = folder / CHAT_TEMPLATE_FILE
        if template.is_file():
            settings = json.loads(files.get(TOKENIZER_CONFIG_FILE, b"{}"))
            if not isinstance(settings, dict):
                raise CheckpointError(f"{tokenizer_config}: expected a JSON object")
            settings["chat_template"] = template.read_text(encoding="utf-8")
            files[TOKENIZER_CONFIG_FILE] = json.dumps(settings, indent=1).encode("ascii")
    except OSError as e:
        raise CheckpointError(f"{e.filename or folder}: cannot read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise e if isinstance(e, CheckpointError) else CheckpointError(f"{folder}: not valid JSON or UTF-8: {e}") from e
    return files
