"""The header of a GGUF file, read with nothing trusted: its metadata, and where each tensor lies.

Owns the file-level rules (ggml's docs/gguf.md). Types and their sizes are those of the package gguf. Its own reader
takes every length on trust, an array of 2^60 numbers in a file of 100 bytes too, and needs 8 s and 500 MB for a
vocabulary of 152,000 tokens. Knows nothing about models.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from smallthinker.errors import CheckpointError, printable
from smallthinker.expert_store.header import MAX_FILE_BYTES, MAX_HEADER_BYTES

if TYPE_CHECKING:  # importing it takes a tenth of a second
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 16  # of metadata, and of tensors: a model has ten tensors a layer
MAX_ARRAY = 1 << 22  # the largest vocabulary that a configuration may have
MAX_RANK = 4
DEFAULT_ALIGNMENT = 32

_AHEAD_BYTES = 1 << 18  # texts are read in pieces of this size
_MANY = 1024  # numbers that are no setting: a score of each token, of which the order counts
_LENGTH = struct.Struct("<Q")
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_DAMAGED = "the file is damaged, cut short or not a GGUF file: copy or download it again"


@dataclass(frozen=True)
class GgufTensor:
    """shape: the last size is that of a row, as numpy has it; start: offset in the file. A row is whole blocks."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A checked header: every tensor lies inside the file. where: what messages call the file."""

    where: str
    file_bytes: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(stream: BinaryIO, where: str, file_bytes: int) -> GgufHeader:
    """Read from the start of a file no more than its header. Raises CheckpointError, with the offset."""
    if find_spec("gguf") is None:
        raise CheckpointError(f"{where}: expected the package gguf, to read GGUF files; found none; pip install gguf")
    cursor = _Cursor(stream, where, file_bytes)
    if (magic := cursor.take(4, "magic")) != MAGIC:
        raise cursor.fault("magic", MAGIC.decode(), magic.decode("latin-1"), "it is not a GGUF file")
    version = cursor.number("<I", "version")
    if version not in VERSIONS:
        remedy = "its numbers are big-endian" if version & 0xFFFF == 0 else "convert the model again, by a current tool"
        raise cursor.fault("version", " or ".join(map(str, VERSIONS)), version, remedy)
    tensor_count = cursor.count("<Q", "number of tensors", MAX_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count("<Q", "number of metadata keys", MAX_ENTRIES)):
        key = cursor.text("metadata key")
        if key in metadata:
            raise cursor.fault("metadata", "every key once", f"'{key}' twice")
        metadata[key] = _value(cursor, key, cursor.number("<I", key))
    tensors = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment < 1 << 32 or alignment & (alignment - 1):
        raise cursor.fault("general.alignment", "a power of two", alignment)
    data_start = -(-cursor.offset // alignment) * alignment
    placed: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in tensors:
        if name in placed:
            raise cursor.fault("tensors", "every name once", f"'{name}' twice")
        placed[name] = _placed(cursor, name, kind, shape, data_start + offset)
    return GgufHeader(where, file_bytes, metadata, placed)


class _Cursor:
    """Reads on in a stream; asks for nothing that the file or the bound of a header can't hold."""

    def __init__(self, stream: BinaryIO, where: str, file_bytes: int) -> None:
        self._stream, self.where, self.file_bytes = stream, where, file_bytes
        self.offset = 0
        self._last = 0  # where what was read last begins
        self._ahead, self._used = b"", 0  # of the stream, what was read already and how much of that was taken

    def fault(self, what: str, expected: object, found: object, remedy: str = _DAMAGED) -> CheckpointError:
        """The one shape of a message about a bad file."""
        found = f"{printable(what, 160)}: expected {expected}, found {printable(str(found), 160)}"
        return CheckpointError(f"{self.where}: byte {self._last}: {found}; {remedy}")

    def take(self, nbytes: int, what: str) -> bytes:
        self._last = self.offset
        room = min(self.file_bytes, MAX_HEADER_BYTES) - self.offset
        data = self._read(nbytes) if nbytes <= room else b""
        if len(data) < nbytes:
            bound = "the file's end" if self.file_bytes < MAX_HEADER_BYTES else "the bound of a header"
            raise self.fault(what, f"{nbytes} bytes", f"{max(room, 0)} to {bound}")
        self.offset += nbytes
        return data

    def number(self, form: str, what: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, form: str, what: str, most: int) -> int:
        value = self.number(form, what)
        if value > most:
            raise self.fault(what, f"at most {most}", value)
        return value

    def texts(self, count: int, what: str) -> list[str]:
        """As `text`, so many: a vocabulary has hundreds of thousands, so they are cut out of large pieces of the file,
        and what is left of the last one is kept for what is read next."""
        found, length_at = list[str](), _LENGTH.unpack_from
        data, at, begin, wanted = b"", 0, self.offset, 0
        bound = min(self.file_bytes, MAX_HEADER_BYTES)
        while len(found) < count:
            more = self._read(min(max(_AHEAD_BYTES, wanted), bound - begin - len(data)))
            data, begin, at = data[at:] + more, begin + at, 0
            size = len(data)
            try:
                for _ in range(count - len(found)):
                    start = at + 8
                    if start > size:
                        wanted = 8
                        break
                    end = start + length_at(data, at)[0]
                    if end > size:
                        wanted = end - size
                        break
                    found.append(str(data[start:end], "utf-8"))
                    at = end
            except UnicodeDecodeError as e:
                self._last = begin + at + 8
                raise self.fault(what, "text in UTF-8", f"byte {data[at + 8 + e.start]:#04x}") from None
            if len(found) < count and (not more or wanted > bound - begin - size):
                self._last = begin + at
                length = int.from_bytes(data[at : at + 8], "little")
                raise self.fault(what, f"a text of {length} bytes", f"{max(bound - self._last - 8, 0)} to the end")
        self.offset, self._ahead, self._used = begin + at, data[at:] + self._ahead[self._used :], 0
        return found

    def _read(self, nbytes: int) -> bytes:
        data = self._ahead[self._used : self._used + nbytes]
        self._used += len(data)
        return data if len(data) == nbytes else data + self._stream.read(nbytes - len(data))

    def text(self, what: str) -> str:
        data = self.take(self.number("<Q", what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.fault(what, "text in UTF-8", f"byte {data[e.start]:#04x}") from None


def _value(cursor: _Cursor, key: str, kind: int) -> Any:
    """An int, float, bool or str, or a list of one of these."""
    if kind == _STRING:
        return cursor.text(key)
    if kind in _SCALARS:
        return _numbers(cursor, key, kind, 1)[0]
    if kind != _ARRAY:
        raise cursor.fault(key, "a value's type from 0 to 12", kind)
    kind = cursor.number("<I", key)
    count = cursor.count("<Q", f"length of {key}", MAX_ARRAY)
    if kind == _STRING:
        return cursor.texts(count, key)
    if kind not in _SCALARS:
        raise cursor.fault(key, "an array of numbers or texts", f"type {kind}")
    return _numbers(cursor, key, kind, count)


def _numbers(cursor: _Cursor, key: str, kind: int, count: int) -> list[Any]:
    dtype = np.dtype(_SCALARS[kind])
    values = np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype)
    if kind == _FLOAT32 and count < _MANY:
        # the shortest decimal number of that float32: 1e-06, not 9.999999974752427e-07
        return [float(str(v)) for v in values]
    if kind != _BOOL:
        return list(values.tolist())
    if bool((values > 1).any()):
        raise cursor.fault(key, "0 or 1", int(values.max()))
    return [bool(value) for value in values]


def _tensor_info(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, shape and offset in the data."""
    name = cursor.text("name of a tensor")
    what = f"tensor '{name[:120]}'"
    rank = cursor.count("<I", f"{what}: dimensions", MAX_RANK)
    shape = tuple(cursor.count("<Q", f"{what}: size", MAX_FILE_BYTES) for _ in range(rank))[::-1]
    return name, cursor.number("<I", f"{what}: type"), shape, cursor.number("<Q", f"{what}: offset")


def _placed(cursor: _Cursor, name: str, number: int, shape: tuple[int, ...], start: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    what = f"tensor '{name[:120]}'"
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise cursor.fault(f"{what}: type", "one that the package gguf knows", number, "install a newer gguf") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or 0 in shape or shape[-1] % block:
        raise cursor.fault(f"{what}: shape", f"rows of whole blocks of {block} ({kind.name})", list(shape))
    nbytes = math.prod(shape) // block * block_bytes
    if start + nbytes > cursor.file_bytes:
        raise cursor.fault(what, f"{nbytes} bytes at byte {start}", f"a file of {cursor.file_bytes} bytes")
    return GgufTensor(name, kind, shape, start, nbytes)
