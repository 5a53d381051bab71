"""Reads a tensor from the place that a family's files give it: rows and columns of a matrix, or every other of them.

Owns which part of a file's tensor that takes, never more than a head's rows or, of a matrix that lies the other way
round, its own columns. Knows nothing about files: who calls reads rows and columns of the file's tensor.

Shape letters: R rows and C columns of what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.models.places import Place

Array = npt.NDArray[Any]
ReadPart = Callable[[range, range], Array]
"""Successive rows and columns of the file's tensor, seen as one matrix -> [R, C], or their blocks [R, B, bytes]."""


def read_placed(place: Place, read: ReadPart, start: int = 0, stop: int | None = None) -> Array:
    """Rows start..stop of a tensor, in its own shape, contiguous: the kernels take nothing else."""
    found = np.ascontiguousarray(_read_rows(place, read, start, stop))  # `read` may give columns of wider blocks
    return found - np.float32(place.added) if place.added else found


def _read_rows(place: Place, read: ReadPart, start: int, stop: int | None) -> Array:
    stop = place.shape[0] if stop is None else min(stop, place.shape[0])
    if place.is_zero:
        return np.zeros((stop - start, *place.shape[1:]), np.float32)
    if len(place.rows) == 1 and prod(place.shape) == len(place.cols):  # a vector, or one of several rows
        return _heads_in_order(_read(read, place.rows, place.cols)[0], place.head).reshape(place.shape)[start:stop]
    if place.transposed:
        return np.ascontiguousarray(np.swapaxes(_read(read, place.rows, place.cols[start:stop]), 0, 1))
    if place.head:
        heads = range(start // place.head, -(-stop // place.head))
        rows = place.rows[heads.start * place.head : heads.stop * place.head]
        skipped = heads.start * place.head
        return _heads_in_order(_read(read, rows, place.cols), place.head)[start - skipped : stop - skipped]
    return _read(read, place.rows[start:stop], place.cols)


def _read(read: ReadPart, rows: range, cols: range) -> Array:
    """Every so many of rows or columns: those between are read, too."""
    found = read(range(rows.start, rows[-1] + 1), range(cols.start, cols[-1] + 1))
    if rows.step == cols.step == 1:
        return found
    return np.ascontiguousarray(found[:: rows.step] if cols.step == 1 else found[:: rows.step, :: cols.step])


def _heads_in_order(rows: Array, head: int) -> Array:
    """Rows whose rotary pairs lie side by side -> the first of all pairs, then the second, in each head."""
    if not head:
        return rows
    pairs = rows.reshape(-1, head // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(rows.shape)
