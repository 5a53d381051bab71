"""Synthetic models of true shapes: random weights for measuring and testing where no trained model is at hand.

Owns the statistics of the weights. Packed bytes come straight from random bytes, without quantising floats. Knows
nothing about the kernels: the layouts are those of docs/format.md.

Statistics: every matrix is zero-mean and uniform, with a standard deviation of gain / sqrt(cols); see `_gain`.
Measured on 256 random tokens at the 4B shape: 50 % of the gates negative, which
ReLU makes zero; a residual stream of 0.4 after the first layer and 2.0 after the last; logits of 2.0; every expert of
a layer used by 6 to 23 % of the tokens (12.5 % is even), 13 % in common with the token before, as by chance.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.config import ModelConfig
from smallthinker.errors import ConfigError
from smallthinker.expert_store.byte_tokenizer import byte_tokenizer_files
from smallthinker.expert_store.checkpoint import INDEX_FILE, SINGLE_FILE, checkpoint_tensors
from smallthinker.expert_store.folder import AtomicFolder
from smallthinker.expert_store.format import (
    ALL_FILES,
    BLOCK,
    CONFIG_FILE,
    QUANTS,
    TENSOR_ALIGN,
    TILE_ROWS,
    Quant,
    RecordLayout,
    TensorSpec,
    check_quant,
)
from smallthinker.expert_store.header import encode_header
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.published import PUBLISHED
from smallthinker.expert_store.writer import StoreWriter, TensorFileWriter, write_synced

NO_QUANT = "none"

_STRIP_WEIGHTS = 4 << 20
_SHARD_BYTES = 1 << 30

# Random bytes become levels: one per byte, or two per byte at 4 bits. The lowest level, which has no positive twin, is
# made zero; without that every matrix had a mean of half a step.
_BYTE_LEVELS = np.concatenate([[0], np.arange(-127, 128)]).astype(np.float32)
_BYTE_STD = float(np.sqrt(np.mean(_BYTE_LEVELS.astype(np.float64) ** 2)))
_NIBBLES = np.concatenate([[8], np.arange(1, 16)]).astype(np.uint8)
_NIBBLE_STD = float(np.sqrt(np.mean((_NIBBLES.astype(np.float64) - 8) ** 2)))
_Q4_TABLE = bytes(int(_NIBBLES[b & 15] | _NIBBLES[b >> 4] << 4) for b in range(256))
_Q8_TILE_TABLE = bytes(b or 128 for b in range(256))  # as unsigned, 128 is zero
_Q8_ROW_TABLE = bytes(0 if b == 128 else b for b in range(256))  # as signed, 128 is -128


def synth(
    shape: str,
    out: str | Path,
    quant: str,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    shard_bytes: int = _SHARD_BYTES,
    compress: int | None = None,
) -> Path:
    """Make a random model at `out`; returns its path. The same seed gives the same bytes.

    shape: "4b", "21b" or the path of a config.json. quant: of a store (q4_0, q8_0, f16, f32), or "none" for a bf16
    Hugging Face checkpoint in shards of `shard_bytes`. Its tokenizer has the 256 bytes and the special tokens.
    compress: a level to compress a store's experts with. These weights are uniform, and as good as incompressible.
    Raises ConfigError, StoreWriteError.
    """
    if seed < 0:
        raise ConfigError(f"seed: expected a number from 0, found {seed}")
    raw = _raw_config(shape)
    config = ModelConfig.from_dict(raw)
    files = {CONFIG_FILE: json.dumps(raw, indent=1).encode("ascii")} | byte_tokenizer_files(config)
    if quant == NO_QUANT:
        if compress is not None:
            raise ConfigError("compress: expected a store's quantisation, found a checkpoint, which has no records")
        _write_checkpoint(config, Path(out), files, seed, force, progress or silent, shard_bytes)
        return Path(out)
    if quant not in QUANTS:
        raise ConfigError(f"quantisation: expected one of {', '.join((*QUANTS, NO_QUANT))}, found {quant!r}")
    kind = check_quant(quant)
    hidden, ffn = config.hidden_size, config.moe_ffn_hidden_size
    with StoreWriter(Path(out), config, kind, files, force, progress, compress=compress) as writer:
        for spec in writer.dense_specs:
            writer.write_dense(spec, _dense_pieces(spec, _Random(seed, spec.name)))
        for spec in writer.expert_specs:
            writer.write_expert(spec, [_record(kind, hidden, ffn, _Random(seed, spec.name)).data])
    return Path(out)


def _raw_config(shape: str) -> dict[str, Any]:
    if shape in PUBLISHED:
        return PUBLISHED[shape]
    path = Path(shape)
    if not path.is_file():
        raise ConfigError(f"shape: expected {', '.join(PUBLISHED)} or a config.json, found {shape!r}")
    ModelConfig.from_json(path)  # its errors have the path
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return raw


class _Random:
    """Random bytes of one tensor. A stream per name: no tensor depends on the order of writing or on strip sizes."""

    def __init__(self, seed: int, name: str) -> None:
        self._bits = np.random.SFC64([seed, zlib.crc32(name.encode("ascii"))])

    def bytes(self, n: int) -> bytes:
        raw: npt.NDArray[np.uint64] = self._bits.random_raw(-(-n // 8))
        return raw.astype("<u8", copy=False).tobytes()[:n]

    def weights(self, n: int, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """n entries of a table of 256."""
        return np.take(table, np.frombuffer(self.bytes(n), np.uint8))


def _std(name: str, cols: int) -> float:
    """Standard deviation of a matrix by the last part of its name, in a store or a checkpoint."""
    return _gain(name.removesuffix(".weight").rsplit(".", 1)[-1]) / math.sqrt(cols)


def _gain(part: str) -> float:
    """Standard deviation of a matrix's outputs for inputs of 1."""
    if part in ("embed_tokens", "lm_head"):
        return 2.0  # logits of about 2. Small beside what the layers add: else a tied head repeats its input for ever
    if part == "o_proj":
        return 0.1  # attention averages over tokens: at 0.8, what they share took over and all chose the same experts
    if part == "down":
        return 1.6  # so that the experts, which differ by token, make most of the residual stream
    return 0.8


def _dense_pieces(spec: TensorSpec, random: _Random) -> Iterator[memoryview]:
    if spec.quant is None:
        yield np.ones(spec.shape, "<f4").view(np.uint8).data
        return
    rows, cols = spec.shape
    strip = max(_STRIP_WEIGHTS // cols // TILE_ROWS, 1) * TILE_ROWS
    for start in range(0, rows, strip):
        yield _tiles(spec.quant, min(strip, rows - start), cols, _std(spec.name, cols), random).data


def _record(quant: Quant, hidden: int, ffn: int, random: _Random) -> npt.NDArray[np.uint8]:
    layout = RecordLayout.of(quant, hidden, ffn)
    record = np.zeros(layout.record_bytes, np.uint8)
    parts = (
        (0, _tiles(quant, ffn, hidden, _std("gate", hidden), random)),
        (layout.up_offset, _rows(quant, ffn, hidden, _std("up", hidden), random)),
        (layout.down_offset, _rows(quant, ffn, hidden, _std("down", ffn), random)),  # stored transposed
    )
    for offset, packed in parts:
        record[offset : offset + packed.size] = packed
    return record


def _tiles(quant: Quant, rows: int, cols: int, std: float, random: _Random) -> npt.NDArray[np.uint8]:
    """Random [rows, cols] in the tiles layout, uint8 [packed bytes]; rows of padding are zero."""
    groups, blocks, padding = -(-rows // TILE_ROWS), cols // BLOCK, -rows % TILE_ROWS
    if quant in ("f16", "f32"):
        floats = random.weights(groups * cols * TILE_ROWS, _float_table(quant, std)).reshape(groups, cols, TILE_ROWS)
        floats[-1, :, TILE_ROWS - padding :] = 0
        return floats.reshape(-1).view(np.uint8)
    table, level_std, vectors, zero = (
        (_Q4_TABLE, _NIBBLE_STD, 4, 0x88) if quant == "q4_0" else (_Q8_TILE_TABLE, _BYTE_STD, 8, 128)
    )
    scales = 2 * TILE_ROWS
    tiles = np.empty((groups, blocks, scales + vectors * 64), np.uint8)
    tiles[:, :, :scales] = np.full(TILE_ROWS, std / level_std, "<f2").view(np.uint8)
    payload = np.frombuffer(random.bytes(groups * blocks * vectors * 64).translate(table), np.uint8)
    tiles[:, :, scales:] = payload.reshape(groups, blocks, -1)
    if padding:
        tiles[-1, :, 2 * (TILE_ROWS - padding) : scales] = 0
        tiles[-1, :, scales:].reshape(blocks, vectors, TILE_ROWS, 4)[:, :, TILE_ROWS - padding :] = zero
    return tiles.reshape(-1)


def _rows(quant: Quant, rows: int, cols: int, std: float, random: _Random) -> npt.NDArray[np.uint8]:
    """Random [rows, cols] in the rows layout, uint8 [packed bytes]."""
    if quant in ("f16", "f32"):
        return random.weights(rows * cols, _float_table(quant, std)).view(np.uint8)
    table, level_std, row_bytes = (
        (_Q4_TABLE, _NIBBLE_STD, cols // 2) if quant == "q4_0" else (_Q8_ROW_TABLE, _BYTE_STD, cols)
    )
    packed = np.empty((rows, row_bytes + 2 * cols // BLOCK), np.uint8)
    packed[:, :row_bytes] = np.frombuffer(random.bytes(rows * row_bytes).translate(table), np.uint8).reshape(rows, -1)
    packed[:, row_bytes:] = np.full(cols // BLOCK, std / level_std, "<f2").view(np.uint8)
    return packed.reshape(-1)


def _float_table(quant: Quant, std: float) -> npt.NDArray[Any]:
    return (_BYTE_LEVELS * (std / _BYTE_STD)).astype("<f2" if quant == "f16" else "<f4")


def _write_checkpoint(
    config: ModelConfig,
    out: Path,
    files: dict[str, bytes],
    seed: int,
    force: bool,
    progress: Progress,
    shard_bytes: int,
) -> None:
    tensors = [(name, shape, 2 * int(np.prod(shape))) for name, shape in checkpoint_tensors(config)]
    total = sum(nbytes for _, _, nbytes in tensors)
    shards: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(nbytes for _, _, nbytes in shards[-1]) + tensor[2] > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    else:
        weight_map = {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files = files | {INDEX_FILE: json.dumps(index, indent=1).encode("ascii")}
    done = 0
    with AtomicFolder(out, total, (*ALL_FILES, INDEX_FILE, "model*.safetensors"), force) as folder:
        try:
            for name, content in files.items():
                write_synced(folder.temporary / name, content)
            for file, shard in zip(names, shards, strict=True):
                header = encode_header(
                    [(name, "BF16", shape) for name, shape, _ in shard], {"format": "pt"}, TENSOR_ALIGN
                )
                sizes = [(name, nbytes) for name, _, nbytes in shard]
                writer = TensorFileWriter(folder.temporary / file, sizes, lambda _, __, header=header: header)  # type: ignore[misc]
                try:
                    for name, shape, nbytes in shard:
                        writer.write(name, _bf16_pieces(name, shape, _Random(seed, name)))
                        done += nbytes
                        progress(done, total, name)
                    writer.finish()
                finally:
                    writer.close()
        except OSError as e:
            raise folder.error(e) from e


def _bf16_pieces(name: str, shape: tuple[int, ...], random: _Random) -> Iterator[memoryview]:
    if len(shape) == 1:
        yield np.full(shape, 0x3F80, "<u2").view(np.uint8).data  # 1.0
        return
    # the upper half of a float32, to nearest, is its bf16
    floats = (_BYTE_LEVELS * (_std(name, shape[1]) / _BYTE_STD)).astype("<f4").view("<u4")
    table = ((floats + 0x8000) >> 16).astype("<u2")
    left = shape[0] * shape[1]
    while left:
        n = min(left, _STRIP_WEIGHTS)
        yield random.weights(n, table).view(np.uint8).data
        left -= n
