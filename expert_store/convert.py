"""Converts a checkpoint into a store: every matrix quantised and laid out as the kernels read it.

Owns which tensor is packed how. Streams: a strip of rows or one expert is in memory at a time. Knows nothing about
file formats (`checkpoint` and `gguf_checkpoint` read, `writer` writes) or the arithmetic of quantisation (the
kernels').
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels, host
from smallthinker.errors import CheckpointError
from smallthinker.expert_store.format import (
    BLOCK_QUANTS,
    TILE_ROWS,
    Formats,
    Layout,
    Quant,
    RecordLayout,
    TensorSpec,
    align,
    record_layouts,
)
from smallthinker.expert_store.own_formats import KEEP, check_made, choose_formats
from smallthinker.expert_store.progress import Progress
from smallthinker.expert_store.sources.checkpoint import Checkpoint, WeightSource
from smallthinker.expert_store.sources.gguf_checkpoint import GGUF_SUFFIX, GgufCheckpoint
from smallthinker.expert_store.writer import StoreWriter
from smallthinker.files import is_folder
from smallthinker.models.registry import checkpoint_name

_STRIP_BYTES = 32 << 20  # of float32 rows: the embedding alone is 1.5 GB
_PART_WEIGHTS = 1 << 18  # a thread's at least: some milliseconds
_F16_MAX = 65504.0
_LARGEST_WEIGHT = {
    "f32": float(np.finfo(np.float32).max),
    "bf16": float(np.finfo(np.float32).max),
    "f16": _F16_MAX,
    "q8_0": 127 * _F16_MAX,
    "q4_0": 8 * _F16_MAX,
    "q4_k": 63 * _F16_MAX,
    "q6_k": 32 * 127 * _F16_MAX,
}


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str | Formats | None = None,
    force: bool = False,
    progress: Progress | None = None,
    compress: int | None = None,
    notice: Callable[[str], None] = warnings.warn,
    origin: str = "",
) -> Path:
    """Convert a checkpoint, a Hugging Face folder or a .gguf file, into a store at `out`; returns its path.

    quant: a format (f32 is exact, for tests), a mix, "keep" or None (own_formats.py), or each matrix's own. Stays
    under 1 GiB of memory for a model of any size. Routers and norms are kept in float32. Blocks that a file has in this
    quantisation already stay as they are. `force` replaces a store that is there, after the new one is whole.
    `compress` is a zstd level, 1 to 19, for the experts. `notice` is told what was taken for granted, since the files
    don't say it. `origin`: what the store's manifest says that it was made of; else the checkpoint's name.
    Raises ConfigError (also for an unknown quantisation or level), CheckpointError, StoreWriteError.
    """
    if isinstance(quant, str) and quant != KEEP:
        check_made(quant)  # before the files are looked at
    with closing(open_checkpoint(Path(checkpoint))) as source:
        config = source.config
        for note in source.notes:
            notice(f"{source.path}: {note}")
        formats = quant if isinstance(quant, Formats) else choose_formats(source, quant, notice)
        formats.check(config)
        files, inputs, made_of = source.small_files(), [Path(checkpoint)], origin or Path(checkpoint).resolve().name
        with StoreWriter(
            Path(out), config, formats, files, force, progress, compress=compress, inputs=inputs, source=made_of
        ) as writer:
            for spec in writer.dense_specs:
                writer.write_dense(spec, dense_pieces(source, spec))
            records = iter(writer.expert_specs)
            for layer, layout in enumerate(record_layouts(config, formats)):
                for expert in range(config.experts_of_layers[layer]):
                    assert layout is not None
                    writer.write_expert(next(records), [_expert_record(source, layer, expert, layout).data])
    return Path(out)


def open_checkpoint(path: Path) -> WeightSource:
    """The checkpoint in a folder, or in a .gguf file. Raises CheckpointError, ConfigError."""
    is_gguf = path.suffix.lower() == GGUF_SUFFIX and not is_folder(path)
    return GgufCheckpoint(path) if is_gguf else Checkpoint(path)


def _expert_record(source: WeightSource, layer: int, expert: int, layout: RecordLayout) -> npt.NDArray[np.uint8]:
    """uint8 [record_bytes]."""
    record = np.zeros(layout.record_bytes, np.uint8)
    for part in layout.sections:
        name = f"layers.{layer}.{part.role}.{expert}"
        packed = _packed(source, name, part.quant, part.layout, transposed=part.is_transposed)
        record[part.offset : part.offset + part.nbytes] = packed
    return record


def dense_pieces(source: WeightSource, spec: TensorSpec, strip_bytes: int = _STRIP_BYTES) -> Iterator[memoryview]:
    """A dense tensor as the kernels read it, a piece after the other. strip_bytes: of a piece, as float32. Raises
    CheckpointError."""
    if spec.quant is None:
        yield _checked(source, spec.name, "f32").view(np.uint8).data
        return
    rows, cols = spec.shape
    strip = max(strip_bytes // (4 * cols) // TILE_ROWS, 1) * TILE_ROWS  # whole tiles: strips join without a seam
    for start in range(0, rows, strip):
        yield dense_rows(source, spec, start, start + strip).data


def dense_rows(source: WeightSource, spec: TensorSpec, start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Rows start..stop of a matrix as the kernels read it; start is a multiple of TILE_ROWS. Raises CheckpointError."""
    assert spec.quant is not None
    return _packed(source, spec.name, spec.quant, "tiles", start, stop)


def _packed(
    source: WeightSource,
    name: str,
    quant: Quant,
    layout: Layout,
    start: int = 0,
    stop: int | None = None,
    *,
    transposed: bool = False,
) -> npt.NDArray[np.uint8]:
    """Rows start..stop of a tensor, or of the transposed one, as the kernels read them."""
    blocks = source.blocks(name, quant, start, stop, transposed=transposed)
    if blocks is not None:
        rows = np.ascontiguousarray(blocks.reshape(len(blocks), -1))
        try:
            return _kernels.repack(quant, layout, rows, finite=True)
        except ValueError as e:
            raise CheckpointError(
                f"{_where(source, name)}: expected finite scales of {quant} blocks, found NaN or infinity; "
                "the file is damaged: copy or download it again"
            ) from e
    weights = np.atleast_2d(_checked(source, name, quant, start, stop))  # a bias is a row
    return _pack(quant, layout, np.ascontiguousarray(weights.T) if transposed else weights)


def _pack(quant: Quant, layout: Layout, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """By all cores: groups of rows know nothing of each other, and the search for a block's scale takes longer than a
    disk to read its weights."""
    rows = align(max(-(-len(weights) // host.physical_cores()), _PART_WEIGHTS // weights.shape[1]), TILE_ROWS)
    starts = range(0, len(weights), rows)
    if quant not in BLOCK_QUANTS or len(starts) == 1:
        return _kernels.pack(quant, layout, weights)
    with ThreadPoolExecutor(len(starts)) as threads:
        return np.concatenate([*threads.map(lambda at: _kernels.pack(quant, layout, weights[at : at + rows]), starts)])


def _checked(
    source: WeightSource, name: str, quant: Quant, start: int = 0, stop: int | None = None
) -> npt.NDArray[np.float32]:
    weights = source.read(name, start, stop)
    largest = max(float(weights.max()), -float(weights.min()))  # NaN and infinity come through
    if not largest <= _LARGEST_WEIGHT[quant]:
        raise CheckpointError(
            f"{_where(source, name)}: expected weights of at most {_LARGEST_WEIGHT[quant]:.6g} for {quant}, "
            f"found {largest}; the checkpoint is damaged or needs another quantisation"
        )
    return weights


def _where(source: WeightSource, name: str) -> str:
    """Of a tensor, for messages: as a checkpoint calls it."""
    return f"{source.path}: tensor '{checkpoint_name(source.config, name)}'"
