"""The header of a safetensors file, read with nothing trusted and written in one fixed way.

Owns the file-level rules: 8 bytes little-endian header length, a JSON object, then the tensors without gaps. Knows
nothing about which tensors a store has (`format`) or a checkpoint (`checkpoint`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallthinker.errors import StoreFormatError, printable, shown
from smallthinker.files import open_regular, parse_json

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors library too
MAX_RANK = 8
MAX_FILE_BYTES = 2**63 - 1

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header. `start` and `stop` are offsets in the file, not in its data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class FileHeader:
    """A checked header: tensors are in file order, lie inside the file and neither overlap nor leave gaps."""

    path: Path
    data_start: int
    file_bytes: int
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def fault(path: Path, offset: int, what: str, expected: object, found: object, remedy: str = "") -> StoreFormatError:
    """The one shape of a message about a bad file."""
    remedy = remedy or "the file is damaged, cut short or not a safetensors file: copy or make it again"
    text = printable(found, 120) if isinstance(found, str) else shown(found)
    return StoreFormatError(f"{path}: byte {offset}: {what}: expected {expected}, found {text}; {remedy}")


def read_header(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> FileHeader:
    """Read and check the header of a safetensors file; allocates no more than `max_header_bytes` for its text.

    Raises StoreFormatError, with path and offset; OSError when the file can't be opened or read.
    """
    with open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise fault(path, 0, "length of the header", f"{LENGTH_BYTES} bytes", f"{len(prefix)} bytes")
        length = int.from_bytes(prefix, "little")
        limit = min(max_header_bytes, file_bytes - LENGTH_BYTES)
        if not 2 <= length <= limit:
            raise fault(path, 0, "length of the header", f"2 to {limit} (file of {file_bytes} bytes)", length)
        text = file.read(length)
    if len(text) < length:
        raise fault(path, LENGTH_BYTES, "header", f"{length} bytes", f"{len(text)} bytes")
    data_start = LENGTH_BYTES + length
    raw = _parse(path, text)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise fault(path, LENGTH_BYTES, "__metadata__", "an object with text values", metadata)
    entries = [_entry(path, name, value, data_start, file_bytes) for name, value in raw.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise fault(
                path, entry.start, f"start of tensor {shown(entry.name)}", f"byte {position}", f"byte {entry.start}"
            )
        position = entry.stop
    if position != file_bytes:
        raise fault(path, position, "end of the last tensor", f"the file's end, {file_bytes}", position)
    return FileHeader(path, data_start, file_bytes, metadata, {entry.name: entry for entry in entries})


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        raw = parse_json(text)
    except ValueError as e:
        raise fault(path, LENGTH_BYTES, "header", "valid JSON", str(e)) from None
    if not isinstance(raw, dict):
        raise fault(path, LENGTH_BYTES, "header", "a JSON object", type(raw).__name__)
    return raw


def _entry(path: Path, name: str, value: Any, data_start: int, file_bytes: int) -> TensorEntry:
    def bad(what: str, expected: object, found: object) -> StoreFormatError:
        return fault(path, LENGTH_BYTES, f"{what} of tensor {shown(name)}", expected, found)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise bad("entry", "an object with dtype, shape and data_offsets", value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad("dtype", f"one of {', '.join(ITEM_BYTES)}", dtype)
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise bad("shape", f"a list of at most {MAX_RANK} sizes", shape)
    if not _sizes(offsets) or len(offsets) != 2:
        raise bad("data_offsets", "two offsets", offsets)
    start, stop = offsets
    if not start <= stop <= file_bytes - data_start:
        raise bad("data_offsets", f"start <= stop <= {file_bytes - data_start}", offsets)
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if stop - start != nbytes:
        raise bad("data_offsets", f"{nbytes} bytes for {dtype} {shape}", f"{stop - start} bytes")
    return TensorEntry(name, dtype, tuple(shape), data_start + start, data_start + stop)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_FILE_BYTES for item in value)


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], align: int
) -> bytes:
    """Header bytes, length prefix included, for tensors (name, dtype, shape) that follow each other without gaps.

    Spaces after the JSON, as the safetensors format allows, make the data start on a multiple of `align`. The length
    depends on the lengths of the texts alone, so fixed-width metadata can be rewritten in place.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(LENGTH_BYTES + len(text)) % align)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
