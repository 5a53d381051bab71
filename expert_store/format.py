"""The store format: which tensors its two files hold, in which order, type and size, and how weights are packed.

Owns every number of docs/format.md. Knows nothing about how the files are written, mapped or read in time.

Shape letters: d hidden_size, F width of an expert, E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from smallthinker import _kernels
from smallthinker.errors import ConfigError, StoreFormatError
from smallthinker.expert_store.header import MAX_HEADER_BYTES, FileHeader, encode_header, fault, read_header
from smallthinker.models.description import Model
from smallthinker.models.tensors import ROUTER, dense_tensors

FORMAT_NAME = "smallthinker-store"
FORMAT_VERSION = "1"
COMPRESSED_VERSION = "2"  # of an experts file with compressed records: engines that knew only 1 refuse it
COMPRESSION = "zstd"

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
DENSE_FILE = "dense.safetensors"
EXPERTS_FILE = "experts.safetensors"
REQUIRED_FILES = (CONFIG_FILE, TOKENIZER_FILE, DENSE_FILE, EXPERTS_FILE)
PROFILE_FILE = "disk-profile.json"  # what a probe of this machine found; no part of the model
HOT_FILE = "hot-experts.safetensors"  # which experts the last runs used most; no part of the model either
PREDICTOR_FILE = "predictor.safetensors"  # which experts are worth reading early; no output depends on it
_LEARNED_FILES = (PROFILE_FILE, HOT_FILE, PREDICTOR_FILE)
ALL_FILES = (*REQUIRED_FILES, TOKENIZER_CONFIG_FILE, *_LEARNED_FILES, *(f".{name}.*" for name in _LEARNED_FILES))

Quant = Literal["q4_0", "q8_0", "f16", "f32"]
Layout = Literal["tiles", "rows"]
QUANTS: tuple[Quant, ...] = get_args(Quant)

BLOCK = _kernels.BLOCK  # columns that share one scale
TILE_ROWS = _kernels.TILE_ROWS  # rows that a tile interleaves
TENSOR_ALIGN = 64  # a cache line: tensors of dense.safetensors and parts of a record start on one
RECORD_ALIGN = 4096  # what a direct read needs

_BLOCK_BYTES = {quant: BLOCK // cols * nbytes for quant, (cols, nbytes) in _kernels.formats().items()}

# Room for one entry of a header: the longest name, dtype, shape, two offsets, its checksum. Bounds what we parse.
_MAX_ENTRY_BYTES = 224
_CRC_DIGITS = 8
_REMEDY = "convert the model again"


def align(nbytes: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-nbytes // to) * to


def packed_bytes(quant: Quant, layout: Layout, rows: int, cols: int) -> int:
    """Bytes of a packed [rows, cols] matrix without alignment; cols must be a multiple of 32."""
    if cols % BLOCK:
        raise ValueError(f"cols: expected a multiple of {BLOCK}, found {cols}")
    return (align(rows, TILE_ROWS) if layout == "tiles" else rows) * (cols // BLOCK) * _BLOCK_BYTES[quant]


@dataclass(frozen=True)
class RecordLayout:
    """Where the three matrices of an expert lie in its record. gate: tiles [F, d]; up: rows [F, d]; down: rows [F, d],
    transposed, so that a zero gate skips one row of each."""

    up_offset: int
    down_offset: int
    down_end: int
    record_bytes: int

    @classmethod
    def of(cls, quant: Quant, hidden: int, ffn: int) -> RecordLayout:
        rows = packed_bytes(quant, "rows", ffn, hidden)
        up = align(packed_bytes(quant, "tiles", ffn, hidden), TENSOR_ALIGN)
        down = align(up + rows, TENSOR_ALIGN)
        return cls(up, down, down + rows, align(down + rows, RECORD_ALIGN))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a store file: a vector of F32, or a matrix packed into U8.

    `shape` is the matrix's [rows, cols] or the vector's [size]; `nbytes` what the file holds, `content_bytes` the part
    of it before the padding with zeros. `quant` is None for a vector.
    """

    name: str
    shape: tuple[int, ...]
    quant: Quant | None
    content_bytes: int
    nbytes: int

    @property
    def dtype(self) -> str:
        return "F32" if self.quant is None else "U8"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file's header."""
        return self.shape if self.quant is None else (self.nbytes,)


def dense_table(model: Model, quant: Quant) -> Iterator[TensorSpec]:
    """The tensors of dense.safetensors in file order."""
    for tensor in dense_tensors(model):
        if len(tensor.shape) == 1:  # size is a multiple of 32: 64-byte aligned as it is
            yield TensorSpec(tensor.name, tensor.shape, None, 4 * tensor.shape[0], 4 * tensor.shape[0])
            continue
        kind: Quant = "f32" if tensor.role == ROUTER else quant  # small, and routing must be exact
        nbytes = packed_bytes(kind, "tiles", *tensor.shape)
        yield TensorSpec(tensor.name, tensor.shape, kind, nbytes, align(nbytes, TENSOR_ALIGN))


def expert_name(layer: int, expert: int) -> str:
    return f"layers.{layer}.experts.{expert}"


def expert_table(model: Model, quant: Quant) -> Iterator[TensorSpec]:
    """The records of experts.safetensors in file order: layer by layer, expert by expert."""
    d, ffn = model.hidden_size, model.ffn_width
    layout = RecordLayout.of(quant, d, ffn)
    for number, layer in enumerate(model.layers):
        for expert in range(0 if layer.ffn is None else layer.ffn.experts):
            yield TensorSpec(expert_name(number, expert), (3 * ffn, d), quant, layout.down_end, layout.record_bytes)


def table(kind: Literal["dense", "experts"], config: Model, quant: Quant) -> Iterator[TensorSpec]:
    return (dense_table if kind == "dense" else expert_table)(config, quant)


def num_tensors(kind: Literal["dense", "experts"], config: Model) -> int:
    """How many tensors `table` yields."""
    return config.num_records if kind == "experts" else sum(1 for _ in dense_tensors(config))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checked file: what it is, where it starts in the file (bytes), what it takes there, and the CRC-32
    of that. `nbytes` is less than the spec's where the tensor is compressed."""

    spec: TensorSpec
    offset: int
    nbytes: int
    crc32: int

    @property
    def is_compressed(self) -> bool:
        return self.nbytes < self.spec.nbytes


@dataclass(frozen=True)
class StoreFile:
    """A checked file of a store."""

    path: Path
    quant: Quant
    engine_version: str
    format_version: str
    data_start: int
    file_bytes: int
    tensors: tuple[StoredTensor, ...]


def encode_store_header(
    specs: tuple[TensorSpec, ...], quant: Quant, engine_version: str, crcs: list[int], sizes: list[int] | None = None
) -> bytes:
    """Header bytes of a store file; the same length for any checksums.

    sizes: of compressed records in the file, at most those of `specs`; the length is the same for any of them too.
    """
    metadata = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION if sizes is None else COMPRESSED_VERSION,
        **({} if sizes is None else {"compression": COMPRESSION}),
        "quant": quant,
        "engine_version": engine_version,
        "crc32": " ".join(f"{crc:0{_CRC_DIGITS}x}" for crc in crcs),
    }
    whole = encode_header(((spec.name, spec.dtype, spec.stored_shape) for spec in specs), metadata, RECORD_ALIGN)
    if sizes is None:
        return whole
    stored = ((spec.name, spec.dtype, (nbytes,)) for spec, nbytes in zip(specs, sizes, strict=True))
    return encode_header(stored, metadata, len(whole))  # smaller numbers, so no more digits: it fits


def read_store_file(path: Path, kind: Literal["dense", "experts"], config: Model) -> StoreFile:
    """Read and check one file of a store against the model's configuration.

    Nothing bigger than the expected header is allocated. Raises StoreFormatError, with path and offset.
    """
    count = num_tensors(kind, config)
    header = read_header(path, min(RECORD_ALIGN + count * _MAX_ENTRY_BYTES, MAX_HEADER_BYTES))
    quant, is_compressed = _check_metadata(header, kind)
    if len(header.tensors) != count:
        raise _missing_or_unknown(header, kind, config, quant, count)
    if header.data_start % RECORD_ALIGN:
        raise fault(path, 8, "start of the data", f"a multiple of {RECORD_ALIGN}", header.data_start, _REMEDY)
    crcs = _checksums(header, count)
    tensors: list[StoredTensor] = []
    offset = header.data_start
    for spec, crc in zip(table(kind, config, quant), crcs, strict=True):
        entry = header.tensors.get(spec.name)
        if entry is None:
            raise _missing_or_unknown(header, kind, config, quant, count)
        shape = entry.shape if is_compressed and _is_stored_shape(entry.shape, spec) else spec.stored_shape
        if (entry.dtype, entry.shape, entry.start) != (spec.dtype, shape, offset):
            pages = f", or fewer pages of {RECORD_ALIGN}," if is_compressed else ""
            raise fault(
                path,
                entry.start,
                f"tensor '{spec.name}'",
                f"{spec.dtype} {list(spec.stored_shape)}{pages} at byte {offset}",
                f"{entry.dtype} {list(entry.shape)} at byte {entry.start}",
                f"{CONFIG_FILE} and this file belong to different models: {_REMEDY}",
            )
        tensors.append(StoredTensor(spec, offset, entry.stop - entry.start, crc))
        offset = entry.stop
    versions = header.metadata["engine_version"], header.metadata["format_version"]
    return StoreFile(path, quant, *versions, header.data_start, header.file_bytes, tuple(tensors))


def _is_stored_shape(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether a compressed record may have this shape in the file: whole pages, and not more than it holds."""
    return len(shape) == 1 and 0 < shape[0] <= spec.nbytes and shape[0] % RECORD_ALIGN == 0


def check_quant(quant: str) -> Quant:
    """Raises ConfigError, naming the choices."""
    if quant not in QUANTS:
        raise ConfigError(f"quantisation: expected one of {', '.join(QUANTS)}, found {quant!r}")
    return quant


def _check_metadata(header: FileHeader, kind: Literal["dense", "experts"]) -> tuple[Quant, bool]:
    """The quantisation, and whether records may be compressed."""

    def bad(key: str, expected: str, remedy: str = _REMEDY) -> StoreFormatError:
        return fault(header.path, 8, f"__metadata__ {key}", expected, header.metadata.get(key, "nothing"), remedy)

    if header.metadata.get("format") != FORMAT_NAME:
        raise bad("format", FORMAT_NAME, "not a store of this engine: convert the model first")
    versions = (FORMAT_VERSION, COMPRESSED_VERSION) if kind == "experts" else (FORMAT_VERSION,)
    version = header.metadata.get("format_version")
    if version not in versions:
        raise bad("format_version", " or ".join(versions), "made by another version of this engine: " + _REMEDY)
    is_compressed = version == COMPRESSED_VERSION
    if is_compressed and header.metadata.get("compression") != COMPRESSION:
        raise bad("compression", COMPRESSION)
    quant = header.metadata.get("quant", "")
    if quant not in QUANTS:
        raise bad("quant", "one of " + ", ".join(QUANTS))
    if "engine_version" not in header.metadata:
        raise bad("engine_version", "a version")
    return quant, is_compressed


def _checksums(header: FileHeader, count: int) -> list[int]:
    words = header.metadata.get("crc32", "").split(" ")
    digits = set("0123456789abcdef")
    if len(words) != count or any(len(word) != _CRC_DIGITS or not digits.issuperset(word) for word in words):
        expected = f"{count} checksums of {_CRC_DIGITS} hexadecimal digits"
        raise fault(header.path, 8, "__metadata__ crc32", expected, f"{len(words)} words", _REMEDY)
    return [int(word, 16) for word in words]


def _missing_or_unknown(
    header: FileHeader, kind: Literal["dense", "experts"], config: Model, quant: Quant, count: int
) -> StoreFormatError:
    left = dict(header.tensors)
    for spec in table(kind, config, quant):
        if left.pop(spec.name, None) is None:
            found = f"none of that name among {len(header.tensors)}"
            return fault(header.path, 8, "tensors", f"a tensor '{spec.name}'", found, _REMEDY)
    unknown = f"'{next(iter(left))}'" if left else "another number"
    return fault(header.path, 8, "tensors", f"{count}, those of {CONFIG_FILE}", unknown, _REMEDY)
