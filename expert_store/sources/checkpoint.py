"""Reads a Hugging Face checkpoint: config.json and model weights in one safetensors file or in shards.

Owns the checkpoint's tensor names and file layout, and what a conversion asks of any checkpoint. Gives float32 rows, a
piece at a time. Knows nothing about stores or quantisation.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smallthinker.errors import CheckpointError, StoreFormatError
from smallthinker.expert_store.format import Quant
from smallthinker.expert_store.header import ITEM_BYTES, FileHeader, TensorEntry, read_header
from smallthinker.expert_store.sources import mxfp4
from smallthinker.expert_store.sources.checkpoint_settings import read_config, settings_files
from smallthinker.expert_store.sources.placed import read_placed
from smallthinker.expert_store.sources.weight_files import WeightFiles
from smallthinker.files import is_folder, is_there, parse_json, read_small
from smallthinker.models.description import Model
from smallthinker.models.places import Place
from smallthinker.models.registry import (
    checkpoint_name,
    checkpoint_places,
    checkpoint_tensors,
    is_unused,
    text_tensor,
)
from smallthinker.models.tensors import HEAD

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SOURCE_DTYPES = ("BF16", "F16", "F32")
_OWN_FORMATS: dict[str, Quant] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}

MAX_INDEX_BYTES = 64 << 20


class WeightSource(Protocol):
    """What a conversion asks of a checkpoint, whatever its files; tensors and experts' matrices have the names of
    `models/tensors.py`."""

    path: Path
    config: Model
    notes: tuple[str, ...]  # what was taken for granted, since the files don't say it

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows start..stop of a tensor as float32, [rows, cols] or [size]. Raises CheckpointError."""
        ...

    def blocks(
        self, name: str, quant: Quant, start: int = 0, stop: int | None = None, *, transposed: bool = False
    ) -> npt.NDArray[np.uint8] | None:
        """The same rows, or those of the transposed matrix, as ggml's blocks [rows, blocks, block bytes] where the
        file has them in this quantisation already; else None. Raises CheckpointError."""
        ...

    def own_format(self, name: str) -> Quant | None:
        """The format that a matrix has in the file and could keep; None where it can't be kept."""
        ...

    def small_files(self) -> dict[str, bytes]:
        """config.json and the tokenizer's files, for the store, by name. Raises CheckpointError."""
        ...

    def close(self) -> None: ...


class Checkpoint:
    """An opened and checked checkpoint; context manager.

    config: the model; files_bytes: size of the weights on disk. Raises CheckpointError (a tensor or file is missing,
    has another shape or type, or is unknown: it could mean another model), ConfigError.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_folder(self.path):
            raise CheckpointError(
                f"{self.path}: expected the folder of a Hugging Face checkpoint or a .gguf file, found "
                f"{'another file' if is_there(self.path) else 'nothing'}"
            )
        self.config = read_config(self.path)
        headers = [self._header(path) for path in self._weight_files()]
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        for header in headers:
            for of_file, entry in header.tensors.items():
                name = text_tensor(of_file)
                if name is None:
                    continue
                if name in self._entries:
                    raise CheckpointError(f"{header.path}: tensor '{name}' is also in {self._entries[name][0].name}")
                self._entries[name] = header.path, entry
        self.files_bytes = sum(header.file_bytes for header in headers)
        self._places = dict(checkpoint_places(self.config))
        self._check_tensors()
        self._files = WeightFiles(header.path for header in headers)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows start..stop of a tensor as float32, [rows, cols] or [size]; exact for bf16 and f16 sources.

        Raises CheckpointError when the file can't be read.
        """
        place = self._places[name]

        def read(rows: range, cols: range) -> npt.NDArray[np.float32]:
            return self._part(place, rows, cols)

        return read_placed(place, read, start, stop)

    def _packed_part(self, place: Place, rows: range, cols: range) -> npt.NDArray[np.float32]:
        """All rows of one expert's matrix, which the file has packed and the other way round."""
        assert len(rows) == place.stored_shape[1], rows
        weights: npt.NDArray[np.float32] = mxfp4.unpack(*self._packed(place, cols)).T
        return weights

    def _packed(self, place: Place, cols: range) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Blocks and scales of an expert's matrix, by columns: these are the file's rows."""
        packed_rows, expert = place.stored_shape[2], place.rows.start // place.stored_shape[1]
        parts = []
        for name in (place.name + mxfp4.BLOCKS, place.name + mxfp4.SCALES):
            path, entry = self._entries[name]
            width = math.prod(entry.shape[2:])
            offset = entry.start + (expert * packed_rows + cols.start) * width
            raw = self._files.read_rows(path, offset, len(cols), width, 0, width)
            parts.append(raw.reshape(len(cols), *entry.shape[2:]))
        return parts[0], parts[1]

    def _part(self, place: Place, rows: range, cols: range) -> npt.NDArray[np.float32]:
        if place.name not in self._entries:
            return self._packed_part(place, rows, cols)
        path, entry = self._entries[place.name]
        item, width = ITEM_BYTES[entry.dtype], entry.shape[-1]
        offset = entry.start + rows.start * width * item
        raw = self._files.read_rows(path, offset, len(rows), width * item, cols.start * item, cols.stop * item)
        return to_float32(raw.reshape(-1), entry.dtype).reshape(len(rows), len(cols))

    def blocks(
        self, name: str, quant: Quant, start: int = 0, stop: int | None = None, *, transposed: bool = False
    ) -> npt.NDArray[np.uint8] | None:
        """None but for experts that are packed as mxfp4: a checkpoint's weights are numbers."""
        place = self._places[name]
        if quant != "mxfp4" or place.name in self._entries or transposed:
            return None
        cols = place.cols[start:stop]  # rows of what is wanted
        blocks, scales = self._packed(place, range(cols.start, cols[-1] + 1))
        return mxfp4.ggml_blocks(blocks[:: cols.step], scales[:: cols.step])

    def own_format(self, name: str) -> Quant | None:
        """mxfp4 of packed experts, or the type of its numbers."""
        place = self._places[name]
        if place.name not in self._entries:
            return "mxfp4"
        return _OWN_FORMATS[self._entries[place.name][1].dtype]

    def small_files(self) -> dict[str, bytes]:
        """config.json and the tokenizer's files, in the one form that a store has."""
        return settings_files(self.path, self.config)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _weight_files(self) -> list[Path]:
        index = self.path / INDEX_FILE
        if not is_there(index):
            single = self.path / SINGLE_FILE
            if not is_there(single):
                raise CheckpointError(f"{self.path}: neither {SINGLE_FILE} nor {INDEX_FILE}; {self._remedy()}")
            return [single]
        try:
            names = shard_names(read_small(index, MAX_INDEX_BYTES), str(index))
        except OSError as e:
            raise CheckpointError(f"{index}: cannot read: {e.strerror or e}") from e
        for name in names:
            if not is_there(self.path / name):
                raise CheckpointError(f"{self.path / name}: missing, but {INDEX_FILE} names it; download it")
        return [self.path / name for name in names]

    def _remedy(self) -> str:
        """What to do where there are no weights by their usual names."""
        gguf, shards = next(self.path.glob("*.gguf"), None), sorted(self.path.glob("*.safetensors"))
        if gguf is not None:
            return f"give the GGUF file itself: {gguf}"
        if len(shards) == 1:
            return f"rename {shards[0].name} to {SINGLE_FILE} if it is the whole model"
        if shards:
            return f"{len(shards)} shards are there, {shards[0].name} first: download the index that lists them, too"
        return "download the weights too"

    def _header(self, path: Path) -> FileHeader:
        try:
            return read_header(path)
        except StoreFormatError as e:
            raise CheckpointError(str(e)) from e
        except OSError as e:
            raise CheckpointError(f"{path}: cannot read: {e.strerror or e}; download it again") from e

    def _check_tensors(self) -> None:
        unknown = set(self._entries)
        for name, shape in checkpoint_tensors(self.config):
            packed = mxfp4.packed_shapes(name, shape)
            if packed and name not in self._entries and set(packed) <= set(self._entries):
                for packed_name, packed_shape in packed.items():
                    self._check(packed_name, packed_shape, ("U8",))
                unknown -= set(packed)
                continue
            if name not in self._entries:
                raise CheckpointError(
                    f"{self.path}: tensor '{name}' {list(shape)} is missing; download the weights again"
                )
            self._check(name, shape, SOURCE_DTYPES)
            unknown.discard(name)
        if self.config.head.tied:
            unknown.discard(checkpoint_name(self.config, HEAD))  # some tied checkpoints store it all the same
        unknown = {name for name in unknown if not is_unused(self.config, name)}
        if unknown:
            name = min(unknown)
            raise CheckpointError(f"{self._entries[name][0]}: unknown tensor '{name[:120]}'; this is another model")

    def _check(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
        path, entry = self._entries[name]
        if entry.shape != shape:
            found = list(entry.shape)
            raise CheckpointError(f"{path}: tensor '{name}': expected shape {list(shape)} (config.json), found {found}")
        if entry.dtype not in dtypes:
            raise CheckpointError(f"{path}: tensor '{name}': expected {', '.join(dtypes)}, found {entry.dtype}")


def shard_names(index: bytes, where: str) -> list[str]:
    """The files that an index of shards names. Raises CheckpointError."""
    if len(index) > MAX_INDEX_BYTES:
        raise CheckpointError(f"{where}: expected at most {MAX_INDEX_BYTES} bytes")
    try:
        raw = parse_json(index)
    except ValueError as e:
        raise CheckpointError(f"{where}: not valid JSON: {e}") from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{where}: expected an object 'weight_map' of tensor names and file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        # a plain file name: a path could reach outside the checkpoint
        if not re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII):
            raise CheckpointError(f"{where}: expected names of .safetensors files, found {name[:80]!r}")
    return names


def to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Little-endian bytes [n * item size] of one of SOURCE_DTYPES -> the same numbers, [n]."""
    assert raw.nbytes % ITEM_BYTES[dtype] == 0
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    wide = raw.view("<u2").astype(np.uint32)  # bf16 is the upper half of a float32
    wide <<= 16
    return wide.view(np.float32)
