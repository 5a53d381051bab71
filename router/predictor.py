"""A store's learned predictor: which experts a layer will want, told from the state of an earlier one.

Owns `predictor.safetensors`, an optional file of a store that only speculative reads depend on, never an output. How it
is learned is `predictor_training`'s. Knows nothing about slots or reads.

For each layer but the last, the file has a matrix [E, d] that takes the place of the next layer's router when it is
asked with the state after this one's attention. Source -1 is the final state of the token before, what goes into the
head: the first layer's experts can so be read while the head runs and a token is chosen. Files of version 2 lead two
layers on as well; guesses so early read three to five times as much for nothing, so that those matrices stay on disk.

The tensors are U8 [nbytes], matrices in q8_0 in the tiles layout (docs/format.md), `layers.S.to.T` or `final.to.T`, in
the order of `pairs`. `__metadata__` has `format`, `format_version` and `routers`, a checksum of the routers it learned
from. At a quarter of float32's memory, q8_0 costs no right guesses that could be measured.

Shape letters: d hidden_size, E experts of a layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker.errors import StoreFormatError, StoreReadError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE, Quant, align, packed_bytes
from smallthinker.expert_store.header import FileHeader, encode_header, fault, read_header
from smallthinker.expert_store.store import Store
from smallthinker.files import open_regular, replacing
from smallthinker.models.description import Model

FORMAT_NAME = "smallthinker-predictor"
FORMAT_VERSION = "3"  # 1: of the state before source
_DISTANCES = {"2": (1, 2), "3": (1,)}  # by version: layers from source to target
FINAL = -1  # as a source: the final state of the token before
QUANT: Quant = "q8_0"

_ALIGN = 64
_MAX_ENTRY_BYTES = 160
_REMEDY = "make it again with `smallthinker calibrate --force`, or delete it: no output depends on it"

Pair = tuple[int, int]
Matrices = dict[Pair, npt.NDArray[np.uint8]]


def pairs(num_layers: int) -> list[Pair]:
    """Every (source, target) of a predictor."""
    return _pairs(num_layers, (1,))


def _pairs(num_layers: int, distances: tuple[int, ...]) -> list[Pair]:
    return [(s, s + d) for s in range(FINAL, num_layers) for d in distances if s + d < num_layers]


def matrix_bytes(config: Model) -> int:
    """What one packed matrix takes."""
    return packed_bytes(QUANT, "tiles", config.experts_per_layer, config.hidden_size)


class PredictorFile:
    """A checked predictor; `nbytes` is the memory that `load` will take."""

    def __init__(self, path: Path, store: Store) -> None:
        """Raises StoreFormatError: no predictor, or one of another model; StoreReadError."""
        config = store.config
        self._pairs = pairs(config.num_layers)
        self._matrix_bytes = matrix_bytes(config)
        self._stride = align(self._matrix_bytes, _ALIGN)
        self.nbytes = self._stride * len(self._pairs)
        try:
            self._header = read_header(path, _MAX_ENTRY_BYTES * (2 * len(self._pairs) + 4))
        except OSError as e:
            raise StoreReadError(f"{path}: cannot read the predictor: {e.strerror or e}; {_REMEDY}") from e
        except StoreFormatError as e:
            raise StoreFormatError(f"{e}; {_REMEDY}") from None
        self._check(self._header, store)

    def _check(self, header: FileHeader, store: Store) -> None:
        metadata, path = header.metadata, header.path
        version = metadata.get("format_version", "")
        expected = {"format": FORMAT_NAME, "routers": routers_checksum(store)}
        if version not in _DISTANCES:
            expected["format_version"] = FORMAT_VERSION
        for key, value in expected.items():
            found = metadata.get(key, "nothing")
            if found != value:
                value += " of this store's own routers" if key == "routers" else ""
                raise fault(path, 8, f"__metadata__ {key}", value, found, _REMEDY)
        names = [_name(pair) for pair in _pairs(store.config.num_layers, _DISTANCES[version])]
        if list(header.tensors) != names:
            listed = (f"{len(n)} tensors, {n[0]} to {n[-1]}" if n else "none" for n in (names, list(header.tensors)))
            raise fault(path, 8, "tensors", next(listed), next(listed), _REMEDY)
        for name, entry in header.tensors.items():
            if entry.dtype != "U8" or entry.shape != (self._stride,):
                expected_shape = f"U8 [{self._stride}]"
                raise fault(path, 8, f"tensor '{name}'", expected_shape, f"{entry.dtype} {list(entry.shape)}", _REMEDY)

    def load(self) -> Matrices:
        """Every pair's matrix, packed in tiles of QUANT. Raises StoreReadError."""
        path, rows = self._header.path, np.empty((len(self._pairs), self._stride), np.uint8)
        try:
            with open_regular(path) as file:
                for row, pair in zip(rows, self._pairs, strict=True):
                    file.seek(self._header.tensors[_name(pair)].start)
                    data = file.read(self._stride)
                    if len(data) != self._stride:  # shortened since the header was read
                        expected = f"expected {self._stride} bytes of a matrix, found {len(data)}"
                        raise StoreReadError(f"{path}: {expected}; {_REMEDY}")
                    row[:] = np.frombuffer(data, np.uint8)
        except OSError as e:
            raise StoreReadError(f"{path}: cannot read the predictor: {e.strerror or e}; {_REMEDY}") from e
        return dict(zip(self._pairs, rows[:, : self._matrix_bytes], strict=True))


def find_predictor(store: Store) -> PredictorFile | None:
    """The store's predictor, if it has one. Raises StoreFormatError, StoreReadError."""
    path = store.hint_path(PREDICTOR_FILE)
    return PredictorFile(path, store) if path.exists() else None


def save_predictor(store: Store, matrices: Mapping[Pair, npt.NDArray[np.uint8]]) -> Path:
    """Put a predictor into the store's folder, in place of one that is there: whole or not at all.

    matrices: of every pair, packed in tiles of QUANT. Raises StoreWriteError.
    """
    path = store.hint_path(PREDICTOR_FILE)
    size = matrix_bytes(store.config)
    padding = bytes(align(size, _ALIGN) - size)
    metadata = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "routers": routers_checksum(store)}
    order = pairs(store.config.num_layers)
    header = encode_header([(_name(pair), "U8", (align(size, _ALIGN),)) for pair in order], metadata, _ALIGN)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(header)
            for pair in order:
                matrix = matrices[pair]
                assert matrix.shape == (size,) and matrix.dtype == np.uint8
                file.write(np.ascontiguousarray(matrix).data)
                file.write(padding)
    except OSError as e:
        raise StoreWriteError(
            f"{path}: cannot write the predictor: {e.strerror or e}; make room, or the store's folder writable"
        ) from e
    return path


def routers_checksum(store: Store) -> str:
    """Of all routers: the same in every format the model is stored in."""
    return f"{zlib.crc32(np.asarray(store.router_checksums(), '<u4').tobytes()):08x}"


def _name(pair: Pair) -> str:
    source, target = pair
    return f"final.to.{target}" if source == FINAL else f"layers.{source}.to.{target}"
