"""Compressed expert records: one zstd frame each, checked before a byte of it is decompressed.

Owns what a frame may be (docs/format.md, "Compressed records"). Knows nothing about files or threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import RECORD_ALIGN, Quant, align

MAX_LEVEL = 19  # above, zstd wants windows of 32 MiB and more, for matches that weights don't have

# What zstd keeps for one decompression: estimate_decompression_context_size() says 95,944 bytes, and a little beside.
CONTEXT_BYTES = 128 << 10

_CHECKSUM_BYTES = 4
_BLOCK_HEADER_BYTES = 3
_RLE_BLOCK = 1


class FrameError(ValueError):
    """A stored record is not the frame that it should be; says what was expected and found."""


class Compressor:
    """Records of one store into frames. quant: where it is of 16 bits, records are split into byte planes first."""

    def __init__(self, quant: Quant, level: int) -> None:
        """Raises ConfigError for a level that isn't from 1 to MAX_LEVEL."""
        if not 1 <= level <= MAX_LEVEL:
            raise ConfigError(f"compress: expected a level from 1 to {MAX_LEVEL}, found {level}")
        self._has_planes = has_planes(quant)
        self._zstd = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)

    def stored(self, record: npt.NDArray[np.uint8]) -> bytes | memoryview:
        """What the file holds of a record, whole pages of at most its size: its frame and zeros, or the record itself
        where a frame would not save a page."""
        planes = record.reshape(-1, 2).T.tobytes() if self._has_planes else record.data
        frame: bytes = self._zstd.compress(planes)
        nbytes = align(len(frame), RECORD_ALIGN)
        return frame.ljust(nbytes, b"\0") if nbytes < record.nbytes else record.data


class Unpacker:
    """The read queue's stage for compressed stores: what lies in the file into a slot, on several threads at once."""

    def __init__(self, quant: Quant, record_bytes: int) -> None:
        self._quant, self._record_bytes = quant, record_bytes
        self._idle: list[Decompressor] = []  # as many as there were threads at once

    def __call__(self, stored: memoryview, record: memoryview) -> None:
        if len(stored) == len(record):  # a frame would have saved nothing
            np.copyto(np.frombuffer(record, np.uint8), np.frombuffer(stored, np.uint8))
            return
        try:
            decompressor = self._idle.pop()
        except IndexError:
            decompressor = Decompressor(self._quant, self._record_bytes)
        decompressor.decompress(stored, record)
        self._idle.append(decompressor)  # one that failed is not used again


class Decompressor:
    """Frames of one store into records. Not thread-safe."""

    def __init__(self, quant: Quant, record_bytes: int) -> None:
        self._zstd = zstandard.ZstdDecompressor()
        self._record_bytes = record_bytes
        self._planes = np.empty(record_bytes, np.uint8) if has_planes(quant) else None

    def decompress(self, stored: memoryview, record: memoryview) -> None:
        """Fill `record` from what `Compressor.stored` made of it. Raises FrameError: `record` then holds anything."""
        frame = self._checked(stored)
        target = record if self._planes is None else memoryview(self._planes.data)
        try:
            # One call that has the whole frame and room for all of its contents: zstd writes straight into the target,
            # without a window of its own, and never behind its end. The GIL is released.
            count = self._zstd.stream_reader(frame).readinto(target)
        except zstandard.ZstdError as e:
            raise FrameError(f"expected a whole zstd frame, found a broken one ({e})") from None
        if count != self._record_bytes:
            raise FrameError(f"expected {self._record_bytes} bytes in the frame, found {count}")
        if self._planes is not None:
            low, high = self._planes.reshape(2, -1)
            numbers = np.frombuffer(record, "<u2")
            np.left_shift(high, 8, out=numbers, dtype=np.uint16, casting="unsafe")
            np.bitwise_or(numbers, low, out=numbers)  # both without the GIL, at several GB/s

    def _checked(self, stored: memoryview) -> memoryview:
        """The frame without the zeros behind it."""
        try:
            found = zstandard.get_frame_parameters(stored)
            nbytes = _frame_bytes(stored)
        except zstandard.ZstdError as e:
            raise FrameError(f"expected a zstd frame, found none ({e})") from None
        if found.content_size != self._record_bytes or not found.has_checksum or found.dict_id:
            is_known = found.content_size != zstandard.CONTENTSIZE_UNKNOWN
            raise FrameError(
                f"expected a zstd frame of {self._record_bytes} bytes with a checksum and no dictionary, found one of "
                f"{found.content_size if is_known else 'unknown'} bytes with{'' if found.has_checksum else 'out'} a "
                f"checksum, dictionary {found.dict_id}"
            )
        rest = len(stored) - nbytes
        if not 0 <= rest < RECORD_ALIGN or bytes(stored[nbytes:]) != bytes(rest):
            raise FrameError(f"expected one zstd frame and less than a page of zeros in {len(stored)} bytes, found "
                             f"{'other bytes behind it' if rest > 0 else 'its beginning'}")  # fmt: skip
        return stored[:nbytes]


def decompressor_bytes(quant: Quant, record_bytes: int) -> int:
    """Memory of a Decompressor."""
    return CONTEXT_BYTES + (record_bytes if has_planes(quant) else 0)


def has_planes(quant: Quant) -> bool:
    """Whether frames hold all low bytes of the record's 16-bit numbers, then all high bytes. Signs and exponents are
    what can be compressed: bf16 weights as f16 take 76 % with their mantissas between, 66 % by themselves."""
    return quant in ("f16", "bf16")


def _frame_bytes(stored: memoryview) -> int:
    """Length of the frame that `stored` begins with, by its block headers (RFC 8878, 3.1.1); more than there is of a
    frame that was cut."""
    at: int = zstandard.frame_header_size(stored)
    while at + _BLOCK_HEADER_BYTES <= len(stored):
        block = int.from_bytes(stored[at : at + _BLOCK_HEADER_BYTES], "little")
        is_last, kind, size = block & 1, block >> 1 & 3, block >> 3
        at += _BLOCK_HEADER_BYTES + (1 if kind == _RLE_BLOCK else size)
        if is_last:
            return at + _CHECKSUM_BYTES
    return len(stored) + 1
