"""Where the experts of a GGUF file lie, and how each of their matrices becomes the part of a record.

Owns the cut into pieces: rows of one matrix, as many as are read at a time. An expert's matrices lie far apart, each
among those of the layer's other experts. Knows nothing about how files are read.

Shape letters: E experts of a layer, P pieces of one, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _kernels
from smallthinker.errors import ConfigError
from smallthinker.expert_store.format import (
    TILE_ROWS,
    Formats,
    Layout,
    Quant,
    RecordLayout,
    Section,
    packed_bytes,
    record_bytes,
    record_layouts,
)
from smallthinker.expert_store.records import Records, Stage, Sums
from smallthinker.expert_store.sources.gguf_checkpoint import IN_PLACE_REMEDY, Found, GgufModel
from smallthinker.models.description import Ffn, Model


def in_one_piece(model: Model) -> Model:
    """A model of dense networks alone with each of them whole: slices of `down` are columns, which a file has apart.
    With experts in other layers slices stay as large as those, since all records have one size."""
    if len(model.certain_layers) < sum(layer.ffn is not None for layer in model.layers):
        return model
    layers = [replace(layer, ffn=None if layer.ffn is None else _whole(layer.ffn)) for layer in model.layers]
    return replace(model, layers=tuple(layers))


def _whole(ffn: Ffn) -> Ffn:
    return replace(ffn, width=ffn.width * ffn.slices, slices=1)


class _Shape(NamedTuple):
    """As `_kernels.piece_stage` takes it."""

    quant: Quant
    layout: Layout
    rows: int
    cols: int
    stride: int
    target: int


class GgufRecords:
    """Of a model in these files of these sizes. Raises ConfigError for a matrix that lies in a way that can't be read
    piece by piece."""

    def __init__(self, model: GgufModel, formats: Formats, files: Sequence[tuple[Path, int]]) -> None:
        self._model, self._files = model, tuple(files)
        self._layouts = record_layouts(model.config, formats)
        self.record_bytes = record_bytes(model.config, formats)
        self._matrices = [_matrices(model, layer, layout) for layer, layout in enumerate(self._layouts) if layout]
        self.on_disk_bytes = sum(
            matrix.section.rows * matrix.row_bytes * len(matrix.starts) for of in self._matrices for matrix in of
        )

    def __call__(self, chunk_bytes: int, crcs: npt.NDArray[np.uint32] | None = None) -> Records:
        """In pieces of about so many bytes. crcs: of the bytes that `spans` has, in that order."""
        shapes: dict[_Shape, int] = {}
        tables, starts, pieces_of_sums = [], [np.zeros(1, np.int64)], []
        for matrices in self._matrices:
            of_matrices = [[*_pieces(matrix, chunk_bytes, shapes)] for matrix in matrices]
            columns = [piece for pieces in of_matrices for piece in pieces]
            pieces_of_sums += [len(pieces) for pieces in of_matrices] * len(columns[0])
            table = np.stack(columns, axis=1)  # [E, P, 4]
            starts.append(starts[-1][-1] + table.shape[1] * np.arange(1, len(table) + 1, dtype=np.int64))
            tables.append(table.reshape(-1, 4))
        stage = Stage(_kernels.piece_stage(list(shapes)), "repack", self._gathered_bytes(chunk_bytes))
        pieces = np.concatenate(tables)
        sums = None if crcs is None else Sums(np.cumsum([0, *pieces_of_sums], dtype=np.int64), crcs)
        return Records(self._files, self.record_bytes, pieces, np.concatenate(starts), stage, self.name_at, sums)

    def spans(self) -> npt.NDArray[np.int64]:
        """The bytes of each expert's matrices, record by record: int64 [spans, 3], of each the number of its file,
        where it begins there, its bytes."""
        of_layers = []
        for matrices in self._matrices:
            table = np.empty((len(matrices[0].starts), len(matrices), 3), np.int64)  # [E, matrices, 3]
            for number, matrix in enumerate(matrices):
                table[:, number, 0], table[:, number, 1] = matrix.file, matrix.starts
                table[:, number, 2] = (matrix.section.rows - 1) * matrix.stride + matrix.row_bytes
            of_layers.append(table.reshape(-1, 3))
        return np.concatenate(of_layers)

    @cached_property
    def tensors(self) -> set[str]:
        """Names of the file's tensors that have experts' matrices."""
        roles = {matrix.section.role for of in self._matrices for matrix in of}
        return {found.tensor.name for name, found in self._model.places.items() if set(name.split(".")) & roles}

    def name_at(self, file: int, offset: int) -> str:
        """Nothing for bytes of no tensor: a read begins on a block, perhaps before its tensor."""
        tensors = (found.tensor for found in self._model.places.values() if found.file == file)
        tensor = next((each for each in tensors if 0 <= offset - each.start < each.nbytes), None)
        if tensor is None:
            return ""
        number = (offset - tensor.start) * tensor.shape[0] // tensor.nbytes
        return f"tensor '{tensor.name}'{f', expert {number}' if len(tensor.shape) == 3 else ''}: "

    def _gathered_bytes(self, chunk_bytes: int) -> int:
        """Of a piece whose rows lie apart, a copy side by side."""
        return chunk_bytes if any(matrix.stride != matrix.row_bytes for of in self._matrices for matrix in of) else 0

    def plain(self) -> Records:
        """Places of a record's size from the first expert on, in the file that has most of them."""
        begins: dict[int, list[int]] = {}
        for of in self._matrices:
            for matrix in of:
                begins.setdefault(matrix.file, []).append(int(matrix.starts[0]))
        file, first = max(((file, min(at)) for file, at in begins.items()), key=lambda item: len(begins[item[0]]))
        path, nbytes = self._files[file]
        first -= first % self.record_bytes
        return Records.in_turn(path, nbytes, first, self.record_bytes, max(1, (nbytes - first) // self.record_bytes))


class _Matrix(NamedTuple):
    """One of the matrices of every expert of a layer: row_bytes of each row, `stride` from one to the next; starts:
    int64 [E], where in the file each begins."""

    section: Section
    file: int
    row_bytes: int
    stride: int
    starts: npt.NDArray[np.int64]


def _matrices(model: GgufModel, layer: int, layout: RecordLayout) -> list[_Matrix]:
    experts = range(model.config.experts_of_layers[layer])
    return [
        _matrix(model, section, [f"layers.{layer}.{section.role}.{expert}" for expert in experts])
        for section in layout.sections
    ]


def _matrix(model: GgufModel, section: Section, names: list[str]) -> _Matrix:
    found = [model.places[name] for name in names]
    first = found[0]
    block, block_bytes = _kernels.formats()[section.quant]
    is_alike = all(_is_plain(one, section, block) and one.file == first.file for one in found)
    if not is_alike or first.tensor.kind.name.lower() != section.quant:
        raise ConfigError(
            f"{model.where}: tensor '{first.tensor.name}': expected {section.quant.upper()} with each of its matrices "
            f"in whole rows, found another order; {IN_PLACE_REMEDY}"
        )
    stride = first.tensor.shape[-1] // block * block_bytes
    starts = [
        one.tensor.start + one.place.rows.start * stride + one.place.cols.start // block * block_bytes for one in found
    ]
    return _Matrix(section, first.file, section.cols // block * block_bytes, stride, np.array(starts, np.int64))


def _is_plain(found: Found, section: Section, block: int) -> bool:
    place = found.place
    if place.head or place.is_zero or place.added or place.transposed != section.is_transposed:
        return False
    if place.rows.step != 1 or place.cols.step != 1 or place.cols.start % block:
        return False
    return (len(place.rows), len(place.cols)) == (section.rows, section.cols)


def _pieces(matrix: _Matrix, chunk_bytes: int, shapes: dict[_Shape, int]) -> Iterator[npt.NDArray[np.int64]]:
    """Of every expert the same piece, int64 [E, 4] as in `Records`; its shape joins `shapes`."""
    section = matrix.section
    groups = -(-section.rows // TILE_ROWS)
    pieces = max(1, min(groups, round(section.rows * matrix.stride / chunk_bytes)))
    bounds = [min(section.rows, TILE_ROWS * (groups * i // pieces)) for i in range(pieces + 1)]
    for begin, end in zip(bounds, [*bounds[1:-1], section.rows], strict=False):
        rows = end - begin
        before = packed_bytes(section.quant, section.layout, begin, section.cols)
        shape = _Shape(section.quant, section.layout, rows, section.cols, matrix.stride, section.offset + before)
        table = np.empty((len(matrix.starts), 4), np.int64)
        table[:, 0], table[:, 1] = matrix.file, matrix.starts + begin * matrix.stride
        # what lies between two pieces belongs to the first: together they are all bytes of the matrix's span
        table[:, 2] = rows * matrix.stride if end < section.rows else (rows - 1) * matrix.stride + matrix.row_bytes
        table[:, 3] = shapes.setdefault(shape, len(shapes))
        yield table
