"""A tokenizer.json in a tenth of the memory: what byte pair encoding needs of it in arrays, the rest of it as it was.

Owns which tokenizers can be packed, and the file that keeps one: a line, a checksum, the length of a JSON object, that,
then the arrays. Knows nothing about encoding: see `packed_tokenizer`.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smallthinker.files import parse_json, read_small

FILE_NAME = "tokenizer.packed"
LEAST_BYTES = 1 << 20  # of a tokenizer.json: the library has a smaller one in a few MiB
_MAGIC = b"smallthinker vocabulary 1\n"
_SIZES = struct.Struct("<II")  # a checksum of all that follows, the length of the JSON object
_ARRAYS = {"ends": "<u4", "texts": "|u1", "sorted": "<u4", "pairs": "<u8", "ranks": "<u4", "merged": "<u4"}
_MOST_TOKENS = 1 << 24


class Hints(Protocol):
    """Where what was learned of a model is kept: a Store."""

    def hint_path(self, name: str) -> Path: ...

    def write_hint(self, name: str, data: bytes) -> bool: ...


@dataclass(frozen=True)
class PackedVocabulary:
    """arrays, byte_fallback, unknown, fuses_unknown, ignores_merges: as `_bpe.Bpe` takes them. added: the added tokens
    as in the file. rest: the tokenizer.json without its words. beginning: ids before every text. size: of ids, up to
    the highest."""

    arrays: Mapping[str, npt.NDArray[Any]]
    rest: Mapping[str, Any]
    added: list[dict[str, Any]]
    byte_fallback: bool
    unknown: int | None
    fuses_unknown: bool
    ignores_merges: bool
    beginning: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.arrays["ends"])


def pack(raw: bytes) -> PackedVocabulary | None:
    """What a tokenizer.json says; None where something in it goes beyond plain byte pair encoding. Raises ValueError,
    KeyError, TypeError for one that is broken."""
    tokenizer = parse_json(raw)
    model, added = tokenizer["model"], tokenizer.get("added_tokens", [])
    if model.get("type") != "BPE" or any(model.get(key) for key in ("dropout", *_AFFIXES)):
        return None
    # what an added token is found in would be another text
    if tokenizer.get("normalizer") is not None and any(token["normalized"] for token in added):
        return None
    words: dict[str, int] = model["vocab"]
    text_of = {id: text for text, id in words.items()} | {token["id"]: token["content"] for token in added}
    size = max(text_of, default=-1) + 1
    if (
        not 0 < size <= _MOST_TOKENS
        or min(text_of) < 0
        or not all(text_of.values())
        or len(set(words.values())) < len(words)
    ):
        return None
    texts = [text_of.get(id, "").encode() for id in range(size)]
    encoded = {text.encode(): id for text, id in words.items()}
    pairs, merged = _merges(model["merges"], words)
    first = np.unique(pairs, return_index=True)[1]  # in order; of a pair that is there twice the library takes the last
    if len(first) < len(pairs):
        return None
    unknown = model.get("unk_token")
    arrays: dict[str, npt.NDArray[Any]] = {
        "ends": np.cumsum([len(text) for text in texts], dtype=np.uint32),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "sorted": np.array([encoded[text] for text in sorted(encoded)], np.uint32),
        "pairs": pairs[first],
        "ranks": first.astype(np.uint32),
        "merged": merged[first],
    }
    rest = tokenizer | {"added_tokens": [], "post_processor": None, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return PackedVocabulary(
        arrays,
        rest,
        added,
        byte_fallback=bool(model.get("byte_fallback")),
        unknown=None if unknown is None else words[unknown],
        fuses_unknown=bool(model.get("fuse_unk")),
        ignores_merges=bool(model.get("ignore_merges")),
    )


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def _merges(
    merges: list[str | list[str]], words: Mapping[str, int]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Pairs and what becomes of them, in the order of their ranks."""
    pairs, merged = np.empty(len(merges), np.uint64), np.empty(len(merges), np.uint32)
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs[rank] = words[left] << 32 | words[right]
        merged[rank] = words[left + right]
    return pairs, merged


def load(path: Path, source: str) -> PackedVocabulary | None:
    """What is kept of the tokenizer.json with this digest; None where there is nothing, or nothing whole."""
    try:
        data = read_small(path)
        magic, (checksum, length) = data[: len(_MAGIC)], _SIZES.unpack_from(data, len(_MAGIC))
        rest = memoryview(data)[len(_MAGIC) + _SIZES.size :]
        if magic != _MAGIC or checksum != zlib.crc32(rest):
            return None
        header, payload = parse_json(bytes(rest[:length])), rest[length:]
        if header["source"] != source:
            return None
        arrays, at = dict[str, npt.NDArray[Any]](), 0
        for (name, kind), count in zip(_ARRAYS.items(), header["counts"], strict=True):
            arrays[name] = np.frombuffer(payload, kind, count, at).copy()  # aligned, and nothing keeps the file's bytes
            at += arrays[name].nbytes
        return PackedVocabulary(arrays, **header["fields"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def can_be_kept(hints: Hints) -> bool:
    """Or each start would take another second and a half to pack it again."""
    folder = hints.hint_path(FILE_NAME).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def save(vocabulary: PackedVocabulary, source: str, hints: Hints) -> None:
    """Keep it for the next start, where that can be."""
    fields = asdict(replace(vocabulary, arrays={}))
    del fields["arrays"]
    payload = b"".join(vocabulary.arrays[name].astype(kind).tobytes() for name, kind in _ARRAYS.items())
    counts = [len(vocabulary.arrays[name]) for name in _ARRAYS]
    header = json.dumps({"source": source, "counts": counts, "fields": fields}).encode("ascii")
    hints.write_hint(FILE_NAME, _MAGIC + _SIZES.pack(zlib.crc32(header + payload), len(header)) + header + payload)
