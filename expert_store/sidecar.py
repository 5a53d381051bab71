"""Checksums of a file that has none of its own, beside it or, where nothing can be written there, in the cache folder.

Owns that file: a safetensors file with one table. Knows nothing about what the bytes are.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import _storage
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.header import encode_header, fault, read_header
from smallthinker.files import is_there, read_small, write_whole

SPAN = np.dtype([("file", "<i4"), ("crc32", "<u4"), ("start", "<i8"), ("nbytes", "<i8")])
"""Bytes of the n-th file of a model, and their checksum."""
Spans = npt.NDArray[np.void]

SUFFIX = ".checksums"
_FORMAT, _VERSION, _TABLE = "smallthinker-checksums", "1", "spans"
_MAX_SPANS = 1 << 22
_DAMAGED = "it is damaged: delete it, compare the model with its publisher's checksum, and run smallthinker verify"


def write_spans(places: tuple[Path, ...], spans: Spans) -> Path | None:
    """Keep them at the first place that can be written; which that was."""
    data = spans.tobytes()
    metadata = {"format": _FORMAT, "format_version": _VERSION, "crc32": f"{_storage.crc32(data):08x}"}
    content = encode_header([(_TABLE, "U8", (len(spans), SPAN.itemsize))], metadata, 8) + data
    for path in places:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError:
            continue
        return path
    return None


def read_spans(places: tuple[Path, ...]) -> tuple[Path, Spans] | None:
    """What is kept at the first place that has something. Raises StoreFormatError, StoreReadError."""
    path = next((path for path in places if is_there(path)), None)
    if path is None:
        return None
    try:
        header = read_header(path)
        data = read_small(path, header.data_start + _MAX_SPANS * SPAN.itemsize)[header.data_start :]
    except OSError as e:
        raise StoreReadError(f"{path}: cannot read: {e.strerror or e}") from e
    found = header.metadata.get("format"), header.metadata.get("format_version"), [*header.tensors]
    if found != (_FORMAT, _VERSION, [_TABLE]) or header.tensors[_TABLE].shape[1:] != (SPAN.itemsize,):
        raise fault(path, 0, "checksums", f"{_FORMAT} of version {_VERSION}", os.fspath(path.name), _DAMAGED)
    crc = f"{_storage.crc32(data):08x}"
    if crc != header.metadata.get("crc32"):
        raise fault(path, header.data_start, "checksum", header.metadata.get("crc32"), crc, _DAMAGED)
    return path, np.frombuffer(data, SPAN)
