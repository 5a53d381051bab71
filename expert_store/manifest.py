"""What a store's files were when they were written: manifest.json, and whether they still are.

Owns that file. The weights have their own checksums, in their files' headers; here are those of the headers and of the
small files. Stores of older versions have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smallthinker import _storage
from smallthinker.errors import StoreReadError, printable
from smallthinker.expert_store.format import (
    MANIFEST_FILE,
    REQUIRED_FILES,
    TOKENIZER_CONFIG_FILE,
)
from smallthinker.expert_store.header import MAX_FILE_BYTES, MAX_HEADER_BYTES, fault
from smallthinker.files import is_there, open_regular, parse_json, read_small

_FORMAT, _VERSION = "smallthinker-manifest", 1
_MAX_BYTES = 1 << 20
_REMEDY = (
    f"the store was changed or damaged: copy or convert it again; whoever changed it on purpose deletes {MANIFEST_FILE}"
)


class Entry(NamedTuple):
    """Of a file: its bytes, and a checksum of all of them, or of the first `covered`."""

    nbytes: int
    covered: int
    crc32: int


def encode_manifest(files: Mapping[str, Entry], engine_version: str, source: str) -> bytes:
    """source: what the store was made of, for people."""
    entries = {
        name: {"bytes": entry.nbytes, "covered": entry.covered, "crc32": f"{entry.crc32:08x}"}
        for name, entry in sorted(files.items())
    }
    head = {"format": _FORMAT, "version": _VERSION, "engine_version": engine_version, "source": source}
    return json.dumps({**head, "files": entries}, indent=1).encode("ascii") + b"\n"


def entry_of(content: bytes) -> Entry:
    """Of a small file."""
    return Entry(len(content), len(content), _storage.crc32(content))


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """None where there is none. Raises StoreFormatError, StoreReadError."""
    path = folder / MANIFEST_FILE
    try:
        if not is_there(path):
            return None
        raw = parse_json(read_small(path, _MAX_BYTES))
        if raw["format"] != _FORMAT or raw["version"] != _VERSION:
            raise ValueError(f"format {raw['format']!r}, version {raw['version']!r}")
        entries = {name: _entry(value) for name, value in raw["files"].items()}
    except OSError as e:
        raise StoreReadError(f"{path}: cannot read: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        found = printable(f"{type(e).__name__}: {e}", 120)
        raise fault(path, 0, "manifest", f"{_FORMAT} of version {_VERSION}", found, _REMEDY) from None
    expected = {*REQUIRED_FILES} | ({TOKENIZER_CONFIG_FILE} if (folder / TOKENIZER_CONFIG_FILE).exists() else set())
    if set(entries) != expected:
        raise fault(path, 0, "files", ", ".join(sorted(expected)), ", ".join(sorted(entries)), _REMEDY)
    return entries


def _entry(value: Any) -> Entry:
    entry = Entry(value["bytes"], value["covered"], int(value["crc32"], 16))
    if len(value) != 3 or not all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in entry):
        raise ValueError("sizes and a checksum of each file")
    return entry


def check_files(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Read what the manifest covers. Returns small files of another size than they had: somebody edited them, as one
    may a chat template; damage leaves a size as it is, or no valid JSON. Raises StoreFormatError, StoreReadError.
    """
    edited = []
    for name, entry in entries.items():
        path = folder / name
        try:
            with open_regular(path) as file:
                nbytes = file.seek(0, 2)
                file.seek(0)
                data = file.read(min(entry.covered, MAX_HEADER_BYTES))
        except OSError as e:
            raise StoreReadError(f"{path}: cannot read: {e.strerror or e}") from e
        if nbytes != entry.nbytes and path.suffix == ".json":
            edited.append(name)
            continue
        if nbytes != entry.nbytes:
            raise fault(path, 0, "size", f"{entry.nbytes} bytes ({MANIFEST_FILE})", f"{nbytes} bytes", _REMEDY)
        crc = _storage.crc32(data)
        if (len(data), crc) != (entry.covered, entry.crc32):
            what = f"checksum of bytes 0 to {entry.covered} ({MANIFEST_FILE})"
            raise fault(path, 0, what, f"{entry.crc32:08x}", f"{crc:08x}", _REMEDY)
    return edited
