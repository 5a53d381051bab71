"""The store format: which tensors its two files hold, in which order, type and size, and how weights are packed.

Owns every number of docs/format.md. Knows nothing about how the files are written, mapped or read in time.

Shape letters: d hidden_size, F width of an expert, E experts of a layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from smallthinker import _kernels
from smallthinker.errors import ConfigError, StoreFormatError, printable
from smallthinker.expert_store.file_names import (
    ALL_FILES as ALL_FILES,
)
from smallthinker.expert_store.file_names import (
    CONFIG_FILE as CONFIG_FILE,
)
from smallthinker.expert_store.file_names import (
    DENSE_FILE as DENSE_FILE,
)
from smallthinker.expert_store.file_names import (
    EXPERTS_FILE as EXPERTS_FILE,
)
from smallthinker.expert_store.file_names import (
    HOT_FILE as HOT_FILE,
)
from smallthinker.expert_store.file_names import (
    MANIFEST_FILE as MANIFEST_FILE,
)
from smallthinker.expert_store.file_names import (
    PACKED_TOKENIZER_FILE as PACKED_TOKENIZER_FILE,
)
from smallthinker.expert_store.file_names import (
    PREDICTOR_FILE as PREDICTOR_FILE,
)
from smallthinker.expert_store.file_names import (
    PROFILE_FILE as PROFILE_FILE,
)
from smallthinker.expert_store.file_names import (
    REQUIRED_FILES as REQUIRED_FILES,
)
from smallthinker.expert_store.file_names import (
    TOKENIZER_CONFIG_FILE as TOKENIZER_CONFIG_FILE,
)
from smallthinker.expert_store.file_names import (
    TOKENIZER_FILE as TOKENIZER_FILE,
)
from smallthinker.expert_store.header import MAX_HEADER_BYTES, FileHeader, encode_header, fault, read_header
from smallthinker.files import parse_json
from smallthinker.models.description import Ffn, Model
from smallthinker.models.tensors import (
    EXPERT_BIASES,
    EXPERT_ROLES,
    GATE,
    ROUTER,
    Tensor,
    dense_tensors,
    table_tensors,
    tensors,
)

FORMAT_NAME = "smallthinker-store"
FORMAT_VERSION = "1"
COMPRESSED_VERSION = "2"  # of an experts file with compressed records: engines that knew only 1 refuse it
MIXED_VERSION = "3"  # of files whose matrices have several formats
COMPRESSION = "zstd"

Quant = Literal[
    "q4_0", "q8_0", "bf16", "f16", "f32", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "iq4_xs", "q2_k", "q3_k", "q4_k",
    "q5_k", "q6_k",
]  # fmt: skip
Layout = Literal["tiles", "rows"]
QUANTS: tuple[Quant, ...] = get_args(Quant)
MADE_QUANTS = tuple(quant for quant in QUANTS if _kernels.can_pack(quant))
BLOCK_QUANTS = tuple(quant for quant in QUANTS if _kernels.formats()[quant][0] > 1)

BLOCK = _kernels.BLOCK  # columns that share one scale
TILE_ROWS = _kernels.TILE_ROWS  # rows that a tile interleaves
TENSOR_ALIGN = 64  # a cache line: tensors of dense.safetensors and parts of a record start on one
RECORD_ALIGN = 4096  # what a direct read needs

ALWAYS_F32 = (ROUTER, *EXPERT_BIASES)

_FORMATS = _kernels.formats()

# Room for one entry of a header: the longest name, dtype, shape, two offsets, its checksum, a format of its own. Bounds
# what we parse.
_MAX_ENTRY_BYTES = 288
_CRC_DIGITS = 8
_REMEDY = "convert the model again"


def align(nbytes: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-nbytes // to) * to


def column_multiple(quant: Quant) -> int:
    """What the columns of a matrix in this format are a multiple of."""
    return _FORMATS[quant][0]


def packed_bytes(quant: Quant, layout: Layout, rows: int, cols: int) -> int:
    """Bytes of a packed [rows, cols] matrix without alignment; cols must be a `column_multiple`."""
    if cols % column_multiple(quant):
        raise ValueError(f"cols: expected a multiple of {column_multiple(quant)} for {quant}, found {cols}")
    block, nbytes = _FORMATS[quant]
    return (align(rows, TILE_ROWS) if layout == "tiles" else rows) * (cols // block) * nbytes


@dataclass(frozen=True)
class Formats:
    """The format of each matrix: `quant`, but for the tensors in `others`, by their role ("lm_head", "down") or in full
    ("layers.3.down"). Routers and biases are f32: they are small, and routing must be exact. whole: experts behind a
    ReLU gate lie as all others do, `down` as in the model's files, and all of their neurons are computed."""

    quant: Quant
    others: Mapping[str, Quant] = field(default_factory=dict)
    whole: bool = False

    def __str__(self) -> str:
        return ", ".join([self.quant, *(f"{name} {quant}" for name, quant in sorted(self.others.items()))])

    def of(self, role: str, layer: int | None) -> Quant:
        """Of a tensor of the model (`models.tensors.Tensor`)."""
        if role in ALWAYS_F32:
            return "f32"
        return self.others.get(f"layers.{layer}.{role}") or self.others.get(role, self.quant)

    def of_experts(self, layer: int) -> tuple[Quant, Quant, Quant]:
        """Of gate, up and down."""
        gate, up, down = (self.of(role, layer) for role in EXPERT_ROLES)
        return gate, up, down

    def check(self, model: Model) -> None:
        """Raises ConfigError where a format or a tensor that it names isn't one, or a matrix isn't whole blocks."""
        check_quant(self.quant)
        matrices = [tensor for tensor in tensors(model) if len(tensor.shape) > 1 and tensor.role not in ALWAYS_F32]
        known = {name for tensor in matrices for name in (tensor.role, tensor.name)}
        for name, quant in self.others.items():
            if name not in known:
                raise ConfigError(
                    f"formats: {printable(name, 80)!r} is no matrix of this model whose format can be chosen"
                )
            check_quant(quant)
        for tensor in matrices:
            quant, cols = self.of(tensor.role, tensor.layer), tensor.shape[-1]
            multiple = column_multiple(quant)
            if cols % multiple:
                expected = f"columns in multiples of {multiple} for {quant}"
                others = "f16" if cols % BLOCK else "q4_0 or q8_0"
                raise ConfigError(f"{tensor.name}: expected {expected}, found {cols}; take {others} for it")


class Section(NamedTuple):
    """One of the matrices of a record: [rows, cols] in this format and layout from `offset` on; `is_transposed`: the
    other way round than in the model's own tensor."""

    role: str
    quant: Quant
    layout: Layout
    is_transposed: bool
    rows: int
    cols: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class RecordLayout:
    """Where the matrices of an expert, or of a slice of a dense network, lie in its record, as the kernels read them.
    content_bytes: to the end of the last; record_bytes: of its place on disk and in memory, one size for all layers."""

    sections: tuple[Section, ...]
    content_bytes: int
    record_bytes: int


def record_layouts(model: Model, formats: Formats) -> list[RecordLayout | None]:
    """Of each layer's experts or slices; None without a network."""
    of_layers = [None if ffn is None else _sections(model, layer, ffn, formats) for layer, ffn in _networks(model)]
    ends = [0 if sections is None else sections[-1].offset + sections[-1].nbytes for sections in of_layers]
    place = align(max(ends), RECORD_ALIGN)
    return [
        None if sections is None else RecordLayout(sections, end, place)
        for sections, end in zip(of_layers, ends, strict=True)
    ]


def record_bytes(model: Model, formats: Formats) -> int:
    """What each record takes on disk and in memory."""
    return max(layout.record_bytes for layout in record_layouts(model, formats) if layout is not None)


def _networks(model: Model) -> Iterator[tuple[int, Ffn | None]]:
    return enumerate(layer.ffn for layer in model.layers)


def _sections(model: Model, layer: int, ffn: Ffn, formats: Formats) -> tuple[Section, ...]:
    kind = ffn.activation.kind
    roles = [role for role in (*EXPERT_ROLES, *(EXPERT_BIASES if ffn.bias else ())) if ffn.gated or GATE not in role]
    if kind not in _kernels.activations():
        expected = " or ".join(_kernels.activations())
        raise ConfigError(f"layers.{layer}.ffn.activation: expected {expected}, found {kind}, which has no kernel yet")
    quants, d = formats.of_experts(layer), model.hidden_size
    found = _kernels.record_sections(quants, d, ffn.width, kind, ffn.gated, ffn.bias, formats.whole)
    return tuple(
        Section(role, formats.of(role, layer), s.layout, s.is_transposed, s.rows, s.cols, s.offset, s.nbytes)
        for role, s in zip(roles, found, strict=True)
    )


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a store file: a vector of F32, or a matrix packed into U8, padded to a cache line.

    `shape` is the matrix's [rows, cols] or the vector's [size]; `nbytes` what the file holds, `content_bytes` the part
    of it before the padding with zeros. `quant` is None for a vector. is_table: of a matrix, single rows are read, so
    each 16 of them have a checksum behind them.
    """

    name: str
    shape: tuple[int, ...]
    quant: Quant | None
    content_bytes: int
    nbytes: int
    is_table: bool = False

    @property
    def group_bytes(self) -> int:
        """Of a matrix, 16 rows."""
        assert self.quant is not None
        return packed_bytes(self.quant, "tiles", TILE_ROWS, self.shape[1])

    @property
    def dtype(self) -> str:
        return "F32" if self.quant is None else "U8"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file's header."""
        return (self.nbytes // 4,) if self.quant is None else (self.nbytes,)


def dense_table(model: Model, formats: Formats) -> Iterator[TensorSpec]:
    """The tensors of dense.safetensors that are kept in memory, in file order."""
    return (_spec(tensor, formats) for tensor in dense_tensors(model))


def lookup_table(model: Model, formats: Formats) -> Iterator[TensorSpec]:
    """And those behind them, of which a token's rows alone are read."""
    for tensor in table_tensors(model):
        spec = _spec(tensor, formats)
        nbytes = spec.content_bytes // spec.group_bytes * (spec.group_bytes + TENSOR_ALIGN)
        yield replace(spec, content_bytes=nbytes, nbytes=nbytes, is_table=True)


def dense_file_table(model: Model, formats: Formats) -> Iterator[TensorSpec]:
    """Both: all tensors of dense.safetensors in file order."""
    return chain(dense_table(model, formats), lookup_table(model, formats))


def _spec(tensor: Tensor, formats: Formats) -> TensorSpec:
    if len(tensor.shape) == 1:
        nbytes = 4 * tensor.shape[0]
        return TensorSpec(tensor.name, tensor.shape, None, nbytes, align(nbytes, TENSOR_ALIGN))
    kind = formats.of(tensor.role, tensor.layer)
    nbytes = packed_bytes(kind, "tiles", *tensor.shape)
    return TensorSpec(tensor.name, tensor.shape, kind, nbytes, align(nbytes, TENSOR_ALIGN))


def expert_name(layer: int, expert: int) -> str:
    return f"layers.{layer}.experts.{expert}"


def expert_table(model: Model, formats: Formats) -> Iterator[TensorSpec]:
    """The records of experts.safetensors in file order: layer by layer, expert by expert."""
    for number, layout in enumerate(record_layouts(model, formats)):
        if layout is not None:
            matrices = [part for part in layout.sections if part.role in EXPERT_ROLES]
            shape = (len(matrices) * matrices[0].rows, model.hidden_size)
            for expert in range(model.experts_of_layers[number]):
                name = expert_name(number, expert)
                yield TensorSpec(name, shape, formats.quant, layout.content_bytes, layout.record_bytes)


def table(kind: Literal["dense", "experts"], config: Model, formats: Formats) -> Iterator[TensorSpec]:
    return (dense_file_table if kind == "dense" else expert_table)(config, formats)


def num_tensors(kind: Literal["dense", "experts"], config: Model) -> int:
    """How many tensors `table` yields."""
    return config.num_records if kind == "experts" else sum(1 for _ in (*dense_tensors(config), *table_tensors(config)))


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
    formats: Formats
    is_compressed: bool
    engine_version: str
    format_version: str
    data_start: int
    file_bytes: int
    tensors: tuple[StoredTensor, ...]


def encode_store_header(
    specs: tuple[TensorSpec, ...],
    formats: Formats,
    engine_version: str,
    crcs: list[int],
    sizes: list[int] | None = None,
) -> bytes:
    """Header bytes of a store file; the same length for any checksums.

    sizes: of compressed records in the file, at most those of `specs`; the length is the same for any of them too.
    """
    version = FORMAT_VERSION if sizes is None else COMPRESSED_VERSION
    metadata = {
        "format": FORMAT_NAME,
        "format_version": MIXED_VERSION if formats.others else version,
        **({} if sizes is None else {"compression": COMPRESSION}),
        "quant": formats.quant,
        **({"formats": json.dumps(dict(sorted(formats.others.items())))} if formats.others else {}),
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
    formats, is_compressed = _check_metadata(header, kind, config)
    if len(header.tensors) != count:
        raise _missing_or_unknown(header, kind, config, formats, count)
    if header.data_start % RECORD_ALIGN:
        raise fault(path, 8, "start of the data", f"a multiple of {RECORD_ALIGN}", header.data_start, _REMEDY)
    crcs = _checksums(header, count)
    tensors: list[StoredTensor] = []
    offset = header.data_start
    for spec, crc in zip(table(kind, config, formats), crcs, strict=True):
        entry = header.tensors.get(spec.name)
        if entry is None:
            raise _missing_or_unknown(header, kind, config, formats, count)
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
    return StoreFile(path, formats, is_compressed, *versions, header.data_start, header.file_bytes, tuple(tensors))


def _is_stored_shape(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether a compressed record may have this shape in the file: whole pages, and not more than it holds."""
    return len(shape) == 1 and 0 < shape[0] <= spec.nbytes and shape[0] % RECORD_ALIGN == 0


def check_quant(quant: str, choices: tuple[Quant, ...] = QUANTS) -> Quant:
    """Raises ConfigError, naming the choices."""
    if quant not in choices:
        raise ConfigError(f"quantisation: expected one of {', '.join(choices)}, found {quant!r}")
    return quant


def _check_metadata(header: FileHeader, kind: Literal["dense", "experts"], config: Model) -> tuple[Formats, bool]:
    """The matrices' formats, and whether records may be compressed."""

    def bad(key: str, expected: str, remedy: str = _REMEDY) -> StoreFormatError:
        return fault(header.path, 8, f"__metadata__ {key}", expected, header.metadata.get(key, "nothing"), remedy)

    if header.metadata.get("format") != FORMAT_NAME:
        raise bad("format", FORMAT_NAME, "not a store of this engine: convert the model first")
    versions = (
        [FORMAT_VERSION, MIXED_VERSION] if kind == "dense" else [FORMAT_VERSION, COMPRESSED_VERSION, MIXED_VERSION]
    )
    version = header.metadata.get("format_version")
    if version not in versions:
        raise bad("format_version", " or ".join(versions), "made by another version of this engine: " + _REMEDY)
    is_compressed = version == COMPRESSED_VERSION or (version == MIXED_VERSION and "compression" in header.metadata)
    if is_compressed and (header.metadata.get("compression") != COMPRESSION or kind == "dense"):
        raise bad("compression", COMPRESSION if kind == "experts" else "none")
    quant = header.metadata.get("quant", "")
    if quant not in QUANTS:
        raise bad("quant", "one of " + ", ".join(QUANTS))
    if "engine_version" not in header.metadata:
        raise bad("engine_version", "a version")
    try:
        others = parse_json(header.metadata.get("formats", "")) if version == MIXED_VERSION else {}
        if not isinstance(others, dict) or not all(isinstance(other, str) for other in others.values()):
            raise ValueError("not an object of names")
        formats = Formats(quant, others)
        formats.check(config)
    except (ValueError, ConfigError) as e:
        if version != MIXED_VERSION:
            raise bad("quant", f"a format of this model's matrices ({e})") from None
        raise bad("formats", f"a JSON object of matrices' formats ({e})") from None
    return formats, is_compressed


def _checksums(header: FileHeader, count: int) -> list[int]:
    words = header.metadata.get("crc32", "").split(" ")
    digits = set("0123456789abcdef")
    if len(words) != count or any(len(word) != _CRC_DIGITS or not digits.issuperset(word) for word in words):
        expected = f"{count} checksums of {_CRC_DIGITS} hexadecimal digits"
        raise fault(header.path, 8, "__metadata__ crc32", expected, f"{len(words)} words", _REMEDY)
    return [int(word, 16) for word in words]


def _missing_or_unknown(
    header: FileHeader, kind: Literal["dense", "experts"], config: Model, formats: Formats, count: int
) -> StoreFormatError:
    left = dict(header.tensors)
    for spec in table(kind, config, formats):
        if left.pop(spec.name, None) is None:
            found = f"none of that name among {len(header.tensors)}"
            return fault(header.path, 8, "tensors", f"a tensor '{spec.name}'", found, _REMEDY)
    unknown = f"'{next(iter(left))}'" if left else "another number"
    return fault(header.path, 8, "tensors", f"{count}, those of {CONFIG_FILE}", unknown, _REMEDY)
