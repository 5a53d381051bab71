"""A store's learned predictor: which experts a layer will want, told from an earlier state.

Owns `predictor.safetensors`, an optional file of a store that only speculative reads depend on, never an output. How it
is learned is `calibration`'s. Knows nothing about slots or reads.

A pair is (source, target). Source t - 1 is the state after the attention of the layer before; source t, for layers
whose routers read what their attention gives, the state before that attention; source -1 the final state of the token
before, what goes into the head: the first layer's experts can so be read while the head runs and a token is chosen.
Each pair has a matrix [E, d] and an offset [E]: of a state divided by its root mean square they say what the target's
router will, before its own bias. Without the offset there was nothing to gain on other text. A pair that isn't there is
guessed by the target's router itself.

The tensors are U8 [nbytes], `layers.S.to.T` or `final.to.T` in the order of `possible_pairs`: the matrix in q8_0 in the
tiles layout (docs/format.md), then the offset in float32. `__metadata__` has `format`, `format_version` and `routers`,
a checksum of the routers it learned from. At a quarter of float32's memory, q8_0 costs no right guesses that could be
measured. Files of versions 2 and 3 have no offsets, and every pair of the two kinds that they knew; files of version 2
lead two layers on as well: guesses so early read three to five times as much for nothing, so that those stay on disk.

Shape letters: d hidden_size, E experts of a layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.errors import StoreFormatError, StoreReadError, StoreWriteError
from smallthinker.expert_store.format import PREDICTOR_FILE, Quant, align, packed_bytes
from smallthinker.expert_store.header import FileHeader, encode_header, fault, read_header
from smallthinker.expert_store.store import Store
from smallthinker.files import open_regular, replacing
from smallthinker.models.description import Model

FORMAT_NAME = "smallthinker-predictor"
FORMAT_VERSION = "4"  # 1: of the state before source
_DISTANCES = {"2": (1, 2), "3": (1,)}  # by version without offsets: layers from source to target
FINAL = -1  # as a source: the final state of the token before
QUANT: Quant = "q8_0"

_ALIGN = 64
_MAX_ENTRY_BYTES = 160
_REMEDY = "make it again with `smallthinker calibrate --force`, or delete it: no output depends on it"

Pair = tuple[int, int]


class Predictor(NamedTuple):
    """Of a pair: the matrix [E, d], packed in tiles of QUANT, uint8; the offset, float32 [E]."""

    matrix: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.float32]


Predictors = dict[Pair, Predictor]


def possible_pairs(config: Model) -> list[Pair]:
    """Every pair that a predictor may have: what a layer with a router can be guessed from."""
    pairs = []
    for target in config.routed_layers:
        pairs.append((target - 1, target))  # FINAL for the first layer
        if target in config.layers_that_mix_first:
            pairs.append((target, target))
    return pairs


def _pairs_of_version(config: Model, version: str) -> list[Pair]:
    """In files without offsets: of models with a router before each layer's attention."""
    layers = config.num_layers
    return [(s, s + d) for s in range(FINAL, layers) for d in _DISTANCES[version] if s + d < layers]


def matrix_bytes(config: Model, target: int) -> int:
    """What one packed matrix takes."""
    return packed_bytes(QUANT, "tiles", config.experts_of_layers[target], config.hidden_size)


def _tensor_bytes(config: Model, target: int, has_offset: bool = True) -> int:
    offset_bytes = 4 * config.experts_of_layers[target] if has_offset else 0
    return align(matrix_bytes(config, target) + offset_bytes, _ALIGN)


class PredictorFile:
    """A checked predictor; `pairs`: what it has; `nbytes`: the memory that `load` will take."""

    def __init__(self, path: Path, store: Store) -> None:
        """Raises StoreFormatError: no predictor, or one of another model; StoreReadError."""
        self._config = store.config
        most = 2 * store.config.num_layers + 4
        try:
            self._header = read_header(path, _MAX_ENTRY_BYTES * most)
        except OSError as e:
            raise StoreReadError(f"{path}: cannot read the predictor: {e.strerror or e}; {_REMEDY}") from e
        except StoreFormatError as e:
            raise StoreFormatError(f"{e}; {_REMEDY}") from None
        version = self._check_metadata(self._header, store)
        self._has_offsets = version == FORMAT_VERSION
        self.pairs = self._check_tensors(self._header, version)
        self.nbytes = sum(_tensor_bytes(self._config, target) for _, target in self.pairs)

    def _check_metadata(self, header: FileHeader, store: Store) -> str:
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
        return version

    def _check_tensors(self, header: FileHeader, version: str) -> list[Pair]:
        """Which pairs to load, after a look at all tensors."""
        config, path, found = self._config, header.path, list(header.tensors)
        possible = possible_pairs(config)
        there = [pair for pair in possible if _name(pair) in header.tensors]
        pairs = there if self._has_offsets else _pairs_of_version(config, version)
        if found != [_name(pair) for pair in pairs] or not there:
            named = [_name(pair) for pair in (possible if self._has_offsets else pairs)]
            some = "some of " if self._has_offsets else ""
            listed = [f"{len(n)} tensors, {n[0]} to {n[-1]}" if n else "none" for n in (named, found)]
            raise fault(path, 8, "tensors", some + listed[0], listed[1], _REMEDY)
        for pair in pairs:
            entry, nbytes = header.tensors[_name(pair)], _tensor_bytes(config, pair[1], self._has_offsets)
            if entry.dtype != "U8" or entry.shape != (nbytes,):
                shape = f"{entry.dtype} {list(entry.shape)}"
                raise fault(path, 8, f"tensor '{_name(pair)}'", f"U8 [{nbytes}]", shape, _REMEDY)
        return there

    def load(self) -> Predictors:
        """Every pair's. Raises StoreReadError."""
        path, found = self._header.path, {}
        try:
            with open_regular(path) as file:
                for pair in self.pairs:
                    file.seek(self._header.tensors[_name(pair)].start)
                    found[pair] = self._read(file, pair[1])
        except OSError as e:
            raise StoreReadError(f"{path}: cannot read the predictor: {e.strerror or e}; {_REMEDY}") from e
        return found

    def _read(self, file: Any, target: int) -> Predictor:
        size, experts = matrix_bytes(self._config, target), self._config.experts_of_layers[target]
        wanted = size + (4 * experts if self._has_offsets else 0)
        data = file.read(wanted)
        if len(data) != wanted:  # shortened since the header was read
            expected = f"expected {wanted} bytes of a matrix, found {len(data)}"
            raise StoreReadError(f"{self._header.path}: {expected}; {_REMEDY}")
        offset = np.frombuffer(data, "<f4", experts, size) if self._has_offsets else np.zeros(experts, np.float32)
        return Predictor(np.frombuffer(data, np.uint8, size), offset.astype(np.float32))


def find_predictor(store: Store) -> PredictorFile | None:
    """The store's predictor, if it has one. Raises StoreFormatError, StoreReadError."""
    path = store.hint_path(PREDICTOR_FILE)
    return PredictorFile(path, store) if path.exists() else None


def save_predictor(store: Store, predictors: Mapping[Pair, Predictor]) -> Path:
    """Put a predictor where the store's hints lie, in place of one that is there: whole or not at all.

    predictors: of possible pairs, at least one. Raises StoreWriteError.
    """
    path, config = store.hint_path(PREDICTOR_FILE), store.config
    metadata = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "routers": routers_checksum(store)}
    order = [pair for pair in possible_pairs(config) if pair in predictors]
    assert order and len(order) == len(predictors)
    sizes = {pair: _tensor_bytes(config, pair[1]) for pair in order}
    header = encode_header([(_name(pair), "U8", (sizes[pair],)) for pair in order], metadata, _ALIGN)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(header)
            for pair in order:
                matrix, offset = predictors[pair]
                assert matrix.shape == (matrix_bytes(config, pair[1]),) and matrix.dtype == np.uint8
                assert offset.shape == (config.experts_of_layers[pair[1]],)
                data = matrix.tobytes() + offset.astype("<f4").tobytes()
                file.write(data.ljust(sizes[pair], b"\0"))
    except OSError as e:
        raise StoreWriteError(
            f"{path}: cannot write the predictor: {e.strerror or e}; make room, or its folder writable"
        ) from e
    return path


def routers_checksum(store: Store) -> str:
    """Of all routers: the same in every format the model is stored in."""
    return f"{zlib.crc32(np.asarray(store.router_checksums(), '<u4').tobytes()):08x}"


def _name(pair: Pair) -> str:
    source, target = pair
    return f"final.to.{target}" if source == FINAL else f"layers.{source}.to.{target}"
