"""A recorded routing: which experts each token of real text asked for, and what the router thought of all the others.

Owns the trace file (docs below) and what can be said of a routing without a model. Pure data: knows nothing about
engines, caches or text.

The file is a safetensors file with three tensors: `ids` U8 or U16 [T, L, k], best first; `probs` F16 [T, L, E], the
router's gate values of all experts (softmax over all E, or each one's sigmoid); `starts` I64 [S], the tokens at which a
sequence begins anew, ascending from 0. `__metadata__` has `format`, `format_version`, `record_bytes` and `model`.

Shape letters: T tokens, L layers, E experts of a layer, k experts per token, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.errors import StoreFormatError, StoreReadError, StoreWriteError
from smallthinker.expert_store.header import FileHeader, encode_header, fault, read_header
from smallthinker.files import replacing

FORMAT_NAME = "smallthinker-trace"
FORMAT_VERSION = "1"
TENSORS = ("ids", "probs", "starts")

_ALIGN = 64
_MAX_HEADER_BYTES = 1 << 16
_MAX_RECORD_BYTES = 1 << 40
_REMEDY = "record the trace again with `smallthinker trace`"
_DTYPES: dict[str, tuple[str, ...]] = {"ids": ("U8", "U16"), "probs": ("F16",), "starts": ("I64",)}
_NUMPY = {"U8": "u1", "U16": "<u2", "F16": "<f2", "I64": "<i8"}
RARELY = 0.14
"""The share of tokens below which the published models' rarely used experts lie (arXiv 2507.20984)."""


@dataclass(frozen=True)
class Trace:
    """See the module. `record_bytes` is the size of one expert, `model` a name for people."""

    ids: npt.NDArray[Any]
    probs: npt.NDArray[np.float16]
    starts: npt.NDArray[np.int64]
    record_bytes: int
    model: str

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[0])

    @property
    def layers(self) -> int:
        return int(self.ids.shape[1])

    @property
    def experts(self) -> int:
        return int(self.probs.shape[2])

    @property
    def experts_per_token(self) -> int:
        return int(self.ids.shape[2])


def ids_dtype(experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest unsigned type for the ids of so many experts; a model has at most 65,536 a layer."""
    return np.uint8 if experts <= 256 else np.uint16


def save_trace(trace: Trace, path: Path, *, replace: bool = True) -> None:
    """Write it whole or not at all. Raises StoreWriteError."""
    arrays = [np.ascontiguousarray(array) for array in (trace.ids, trace.probs, trace.starts)]
    types = ["U8" if trace.ids.dtype == np.uint8 else "U16", "F16", "I64"]
    metadata = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "record_bytes": str(trace.record_bytes),
        "model": trace.model.encode("ascii", "replace").decode(),
    }
    table = [(name, kind, array.shape) for name, kind, array in zip(TENSORS, types, arrays, strict=True)]
    try:
        with replacing(path, replace=replace) as file:
            file.write(encode_header(table, metadata, _ALIGN))
            for kind, array in zip(types, arrays, strict=True):
                file.write(array.astype(_NUMPY[kind], copy=False).data)
    except OSError as e:
        raise StoreWriteError(f"{path}: cannot write the trace: {e.strerror or e}; choose another place") from e


def load_trace(path: Path) -> Trace:
    """Raises StoreFormatError: no trace, or one that contradicts itself; StoreReadError: can't be read."""
    try:
        header = read_header(path, _MAX_HEADER_BYTES)
        record_bytes = _check_header(header)
        ids, probs, starts = (_read(header, name) for name in TENSORS)
    except OSError as e:
        raise StoreReadError(f"{path}: cannot read the trace: {e.strerror or e}; {_REMEDY}") from e
    _check_values(path, ids, probs, starts)
    return Trace(ids, probs, starts, record_bytes, header.metadata.get("model", ""))


def _check_header(header: FileHeader) -> int:
    """Names, types and shapes agree with each other -> the record's bytes."""
    path = header.path
    if header.metadata.get("format") != FORMAT_NAME or header.metadata.get("format_version") != FORMAT_VERSION:
        found = " ".join(header.metadata.get(key, "nothing") for key in ("format", "format_version"))
        raise fault(path, 8, "__metadata__ format", f"{FORMAT_NAME} {FORMAT_VERSION}", found, _REMEDY)
    text = header.metadata.get("record_bytes", "nothing")
    if not (text.isascii() and text.isdecimal() and len(text) <= 13 and 1 <= int(text) <= _MAX_RECORD_BYTES):
        raise fault(path, 8, "__metadata__ record_bytes", f"a number from 1 to {_MAX_RECORD_BYTES}", text, _REMEDY)
    if set(header.tensors) != set(TENSORS):
        raise fault(path, 8, "tensors", ", ".join(TENSORS), ", ".join(sorted(header.tensors)) or "none", _REMEDY)
    for name, dtypes in _DTYPES.items():
        entry = header.tensors[name]
        rank = 1 if name == "starts" else 3
        if entry.dtype not in dtypes or len(entry.shape) != rank or not all(entry.shape):
            expected = f"{' or '.join(dtypes)} of {rank} sizes above 0"
            raise fault(path, entry.start, f"tensor '{name}'", expected, f"{entry.dtype} {list(entry.shape)}", _REMEDY)
    ids, probs = header.tensors["ids"], header.tensors["probs"]
    if ids.shape[:2] != probs.shape[:2] or ids.shape[2] > probs.shape[2] or probs.shape[2] > 1 << 16:
        expected = "[T, L, k] and [T, L, E] with k <= E <= 65536"
        raise fault(path, 8, "shapes of ids and probs", expected, f"{ids.shape} and {probs.shape}", _REMEDY)
    return int(text)


def _read(header: FileHeader, name: str) -> npt.NDArray[Any]:
    """The tensor; its size was checked against the file's by `read_header`."""
    entry = header.tensors[name]
    array = np.fromfile(header.path, _NUMPY[entry.dtype], int(np.prod(entry.shape)), offset=entry.start)
    if array.nbytes != entry.stop - entry.start:  # shortened since the header was read
        raise fault(header.path, entry.start, f"tensor '{name}'", f"{entry.stop - entry.start} bytes", array.nbytes)
    return array.reshape(entry.shape)


def _check_values(
    path: Path, ids: npt.NDArray[Any], probs: npt.NDArray[np.float16], starts: npt.NDArray[np.int64]
) -> None:
    def bad(what: str, expected: str, found: object) -> StoreFormatError:
        return fault(path, 8, what, expected, found, _REMEDY)

    tokens, _, k = ids.shape
    experts = probs.shape[2]
    if int(ids.max()) >= experts:
        raise bad("ids", f"experts from 0 to {experts - 1}", int(ids.max()))
    if k > 1 and not np.diff(np.sort(ids, axis=2).astype(np.int32), axis=2).all():
        raise bad("ids", f"{k} distinct experts for each token and layer", "the same one twice")
    if not ((probs >= 0) & (probs <= 1)).all():  # NaN is neither
        raise bad("probs", "numbers from 0 to 1", "others")
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= tokens:
        raise bad("starts", f"ascending tokens from 0 to {tokens - 1}", starts[:8].tolist())


class ExpertUsage(NamedTuple):
    """How unevenly experts are used. All are shares from 0 to 1.

    rarely_used: of the experts, those used by under 14 % of the tokens; top_quarter: mean share of tokens that use one
    of the most used quarter of the experts; even: that share were all used alike; repeated: of a token's experts, those
    that the token before it used too; None without two tokens in a row.
    """

    rarely_used: float
    top_quarter: float
    most_used: float
    least_used: float
    even: float
    repeated: float | None


def expert_use(ids: npt.NDArray[Any], experts: int) -> npt.NDArray[np.float64]:
    """The share of tokens that use each expert, [L, E]; ids [T, L, k]."""
    tokens, layers, _ = ids.shape
    keys = ids.astype(np.int64) + experts * np.arange(layers)[:, None]
    counts: npt.NDArray[np.int64] = np.bincount(keys.ravel(), minlength=layers * experts)
    shares: npt.NDArray[np.float64] = counts.reshape(layers, experts) / tokens
    return shares


def usage(ids: npt.NDArray[Any], starts: npt.NDArray[np.int64], experts: int) -> ExpertUsage:
    """ids [T, L, k], starts [S] as in a trace."""
    tokens, _, k = ids.shape
    shares = np.sort(expert_use(ids, experts).ravel())
    follows = np.ones(tokens, bool)
    follows[starts] = False
    after = np.flatnonzero(follows)
    repeated = None
    if after.size:
        same = sum(np.count_nonzero(ids[after, :, i, None] == ids[after - 1]) for i in range(k))
        repeated = same / ids[after].size
    return ExpertUsage(
        float((shares < RARELY).mean()),
        float(shares[-max(len(shares) // 4, 1) :].mean()),
        float(shares[-1]),
        float(shares[0]),
        k / experts,
        repeated,
    )
