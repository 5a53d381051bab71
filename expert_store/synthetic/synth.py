"""Synthetic models of true shapes: random weights for measuring and testing where no trained model is at hand.

Owns the statistics of the weights and which tensors there are. Packed bytes are made in `random_weights`, how uneven
the use of the experts is in `skew`.

Statistics: every matrix is zero-mean and uniform, with a standard deviation of gain / sqrt(cols); see `_gain`.
Measured on 256 random tokens at the 4B shape: 50 % of the gates negative, which
ReLU makes zero; a residual stream of 0.4 after the first layer and 2.0 after the last; logits of 2.0; every expert of
a layer used by 6 to 23 % of the tokens (12.5 % is even), 13 % in common with the token before, as by chance. With a
skew of 1.3, on 512 random tokens at the same shape: biases 1.29 to 1.31 times the spread that tokens make, in every
layer; 74 % of the experts used by under 14 % of the tokens, the top quarter by 41 %, 45 % in common with the token
before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.errors import ConfigError
from smallthinker.expert_store.folder import AtomicFolder
from smallthinker.expert_store.format import (
    ALL_FILES,
    CONFIG_FILE,
    TENSOR_ALIGN,
    TILE_ROWS,
    Quant,
    RecordLayout,
    TensorSpec,
    record_layouts,
)
from smallthinker.expert_store.header import encode_header
from smallthinker.expert_store.own_formats import formats_of
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.sources.checkpoint import INDEX_FILE, SINGLE_FILE
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.expert_store.synthetic.random_weights import (
    BYTE_LEVELS,
    BYTE_STD,
    RandomBytes,
    clear_first_column,
    clear_first_row,
    largest_level,
    random_rows,
    random_tiles,
    set_first_column,
    to_bf16,
)
from smallthinker.expert_store.synthetic.skew import noise_bytes, normal_biases, router_spreads
from smallthinker.expert_store.writer import StoreWriter, TensorFileWriter, write_synced
from smallthinker.files import is_there, parse_json, read_small
from smallthinker.models.description import Model
from smallthinker.models.families.smallthinker import MODEL_TYPE as FAMILY
from smallthinker.models.published import PUBLISHED, published_shape
from smallthinker.models.registry import checkpoint_tensors, parse_model, read_model, to_config
from smallthinker.models.tensors import EMBEDDING

QUANTS = ("q4", "q4_0", "q4_k", "q4_k_s", "q4_k_m", "q6_k", "q8_0", "mxfp4", "bf16", "f16", "f32")
"""Formats whose bytes random_weights.py makes, and mixes of them."""
NO_QUANT = "none"

MAX_SKEW = 16.0  # far beyond it nothing changes: each layer has k experts that every token uses

_STRIP_WEIGHTS = 4 << 20
_SHARD_BYTES = 1 << 30


def synth(
    shape: str,
    out: str | Path,
    quant: str,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    shard_bytes: int = _SHARD_BYTES,
    skew: float = 0.0,
    compress: int | None = None,
) -> Path:
    """Make a random model at `out`; returns its path. The same seed gives the same bytes.

    skew: standard deviation of a constant bias of each expert's router logit, in units of what tokens make of it (see
    `skew.py`). 0 is near-uniform routing; 1.3 is about that of the published models.

    shape: "4b", "21b", "dense-1.5b" or the path of a config.json. quant: of a store, one of QUANTS, or
    "none" for a bf16 Hugging Face checkpoint in shards of `shard_bytes`. The tokenizer has 256 bytes and the special
    tokens. compress: a level to compress a store's experts with: these weights are as good as incompressible.
    Raises ConfigError, StoreWriteError.
    """
    if seed < 0:
        raise ConfigError(f"seed: expected a number from 0, found {seed}")
    if not 0 <= skew <= MAX_SKEW:
        raise ConfigError(f"skew: expected a number from 0 to {MAX_SKEW:g}, found {skew}")
    raw = _raw_config(shape)
    config = parse_model(raw, in_store=quant != NO_QUANT)
    inputs = [] if published_shape(shape) is not None else [Path(shape)]
    cut = {} if quant == NO_QUANT else {key: n for key, n in to_config(config).items() if key == "num_mlp_slices"}
    said = dict(raw) | cut  # a store says into how many slices it is cut: another rule changes none
    files = {CONFIG_FILE: json.dumps(said, indent=1).encode("ascii")} | byte_tokenizer_files(config)
    if skew and not config.routed_layers:
        raise ConfigError("skew: expected 0 for a dense model, which has no routers that could prefer an expert")
    if skew and quant == NO_QUANT and config.family != FAMILY:
        raise ConfigError(f"skew: checkpoints with it are made of {FAMILY} alone, found {config.family}; make a store")
    if quant == NO_QUANT:
        if compress is not None:
            raise ConfigError("compress: expected a store's quantisation, found a checkpoint, which has no records")
        uneven = _Skew(config, skew, None, seed) if skew else None
        _write_checkpoint(config, Path(out), files, seed, force, progress or silent, shard_bytes, uneven, inputs)
        return Path(out)
    if quant not in QUANTS:
        raise ConfigError(f"quantisation: expected one of {', '.join((*QUANTS, NO_QUANT))}, found {quant!r}")
    formats = formats_of(config, quant)
    uneven = _Skew(config, skew, formats.of(EMBEDDING, None), seed) if skew else None
    made_of = f"random weights, {shape if published_shape(shape) is not None else 'config.json'}, seed {seed}"
    with StoreWriter(
        Path(out), config, formats, files, force, progress, compress=compress, inputs=inputs, source=made_of
    ) as writer:
        for spec in writer.dense_specs:
            writer.write_dense(spec, _dense_pieces(spec, RandomBytes(seed, spec.name), uneven))
        records = iter(writer.expert_specs)
        for layer, layout in enumerate(record_layouts(config, formats)):
            for spec in islice(records, config.experts_of_layers[layer]):
                assert layout is not None
                writer.write_expert(spec, [_record(layout, RandomBytes(seed, spec.name), uneven).data])
    return Path(out)


def _raw_config(shape: str) -> dict[str, Any]:
    published = published_shape(shape)
    if published is not None:
        return published
    path = Path(shape)
    if not is_there(path):
        raise ConfigError(f"shape: expected {', '.join(PUBLISHED)} or a config.json, found {shape!r}")
    read_model(path)  # its errors have the path
    raw: dict[str, Any] = parse_json(read_small(path))
    return raw


def _std(name: str, cols: int) -> float:
    """Standard deviation of a matrix by the last part of its name, in a store or a checkpoint."""
    return _gain(_part(name)) / math.sqrt(cols)


def _part(name: str) -> str:
    """ "o_proj" of "layers.3.o_proj" or "model.layers.3.self_attn.o_proj.weight"."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _gain(part: str) -> float:
    """Standard deviation of a matrix's outputs for inputs of 1."""
    if part in ("embed_tokens", "lm_head", "layer_embeddings"):
        return 2.0  # logits of about 2. Small beside what the layers add: else a tied head repeats its input for ever
    if part == "o_proj":
        return 0.1  # attention averages over tokens: at 0.8, what they share took over and all chose the same experts
    if part == "down":
        return 1.6  # so that the experts, which differ by token, make most of the residual stream
    return 0.8


class _Skew:
    """What a skew changes in the weights of one model; see skew.py. Names are those of a store or of a checkpoint."""

    def __init__(self, config: Model, amount: float, kind: Quant | None, seed: int) -> None:
        self._words, self._experts_of_layers = config.vocab_size, config.experts_of_layers
        self._seed = seed
        embedding_std = _std("embed_tokens", config.hidden_size)
        # the largest level there is, so that what routers multiply it with stays small
        self._embedded = embedding_std * largest_level(kind or "q8_0")
        expert_gain = math.sqrt(0.5) * _gain("gate") * _gain("up") * _gain("down")  # ReLU halves the variance
        noise = RandomBytes(seed, "skew").bytes(noise_bytes(config))
        spreads = router_spreads(config, amount, embedding_std, _gain("router"), expert_gain, noise)
        self._bias_std = [amount * spread for spread in spreads]

    def first_column(self, name: str) -> npt.NDArray[np.float32] | None:
        """float32 [rows] where the matrix's first column is fixed: the same for each token of the embedding, and each
        expert's bias, in a random order, of a router."""
        part = _part(name).removeprefix("primary_")
        if part == "embed_tokens":
            return np.full(self._words, self._embedded, np.float32)
        if part != "router":
            return None
        layer = int(name.split("layers.")[1].split(".")[0])
        rows = self._experts_of_layers[layer]
        words = np.frombuffer(RandomBytes(self._seed, f"layers.{layer}.router.bias").bytes(8 * rows), "<u8")
        biases = normal_biases(rows)[np.argsort(words, kind="stable")]
        return (self._bias_std[layer] / self._embedded * biases).astype(np.float32)

    def clears_first_row(self, name: str) -> bool:
        """Whether the matrix adds to the residual stream and must leave its first coordinate alone."""
        return _part(name) in ("o_proj", "down")


def _dense_pieces(spec: TensorSpec, random: RandomBytes, skew: _Skew | None) -> Iterator[memoryview]:
    if spec.quant is None:  # scales of norms, biases
        yield np.full(spec.shape, 0.0 if "bias" in _part(spec.name) else 1.0, "<f4").view(np.uint8).data
        return
    total, cols = spec.shape
    strip = max(_STRIP_WEIGHTS // cols // TILE_ROWS, 1) * TILE_ROWS
    for start in range(0, total, strip):
        n = min(strip, total - start)
        packed = random_tiles(spec.quant, n, cols, _std(spec.name, cols), random)
        if skew is not None:
            column = skew.first_column(spec.name)
            if column is not None:
                set_first_column(packed, spec.quant, cols, column[start : start + n])
            if start == 0 and skew.clears_first_row(spec.name):
                clear_first_row(packed, spec.quant, cols)
        yield packed.data


def _record(layout: RecordLayout, random: RandomBytes, skew: _Skew | None) -> npt.NDArray[np.uint8]:
    record = np.zeros(layout.record_bytes, np.uint8)
    for part in layout.sections:
        make = random_tiles if part.layout == "tiles" else random_rows
        std = _std(part.role, part.rows if part.is_transposed else part.cols)
        packed = make(part.quant, part.rows, part.cols, std, random)
        if skew is not None and skew.clears_first_row(part.role):
            (clear_first_column if part.is_transposed else clear_first_row)(packed, part.quant, part.cols)
        record[part.offset : part.offset + packed.size] = packed
    return record


def _write_checkpoint(
    config: Model,
    out: Path,
    files: dict[str, bytes],
    seed: int,
    force: bool,
    progress: Progress,
    shard_bytes: int,
    skew: _Skew | None,
    inputs: Collection[Path],
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
    with AtomicFolder(out, total, (*ALL_FILES, INDEX_FILE, "model*.safetensors"), force, inputs) as folder:
        try:
            for name, content in files.items():
                write_synced(folder.temporary / name, content)
            for file, shard in zip(names, shards, strict=True):
                header = encode_header(
                    [(name, "BF16", shape) for name, shape, _ in shard], {"format": "pt"}, TENSOR_ALIGN
                )
                sizes = [(name, nbytes) for name, _, nbytes in shard]
                writer = TensorFileWriter(folder.temporary / file, sizes, partial(_without_checksums, header))
                try:
                    for name, shape, nbytes in shard:
                        writer.write(name, _bf16_pieces(name, shape, RandomBytes(seed, name), skew))
                        done += nbytes
                        progress(done, total, name)
                    writer.finish()
                finally:
                    writer.close()
        except OSError as e:
            raise folder.error(e) from e


def _without_checksums(header: bytes, crcs: list[int], sizes: list[int]) -> bytes:
    """A checkpoint's header names none, so it stays what it was."""
    return header


def _bf16_pieces(name: str, shape: tuple[int, ...], random: RandomBytes, skew: _Skew | None) -> Iterator[memoryview]:
    if len(shape) == 1:
        yield np.full(shape, 0 if "bias" in name else 0x3F80, "<u2").view(np.uint8).data  # 0.0 or 1.0
        return
    total, cols = math.prod(shape[:-1]), shape[-1]
    table = to_bf16(BYTE_LEVELS * (_std(name, cols) / BYTE_STD))
    column = skew.first_column(name) if skew is not None else None
    strip = max(_STRIP_WEIGHTS // cols, 1)
    for start in range(0, total, strip):
        n = min(strip, total - start)
        weights = random.weights(n * cols, table).reshape(n, cols)
        if column is not None:
            weights[:, 0] = to_bf16(column[start : start + n])
        if start == 0 and skew is not None and skew.clears_first_row(name):
            weights[0] = 0
        yield weights.reshape(-1).view(np.uint8).data
