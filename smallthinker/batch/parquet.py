"""Parquet files, by pyarrow, which is imported when there is one to read or to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from smallthinker.errors import RequestError, one_line

_ROWS_AT_ONCE = 64


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises RequestError."""
    pyarrow, parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as e:
        raise RequestError(f"{path}: expected a Parquet file: {one_line(e, 300)}") from None


def write_parquet(path: Path, file: BinaryIO, rows: Iterable[dict[str, Any]], source: Path, answers: list[str]) -> None:
    """path: for messages. source: where the columns of a row come from, whose types stay as they are if it is Parquet,
    too. answers: the other columns; numbers where their name ends in `_tokens`. Raises RequestError."""
    pyarrow, parquet = _pyarrow(path)
    kept = parquet.read_schema(source) if source.suffix.lower() == ".parquet" else None
    rows = iter(rows)
    first = _take(rows)
    if kept is None:
        kept = pyarrow.Table.from_pylist(first).schema if first else pyarrow.schema([])
        kept = pyarrow.schema([field for field in kept if field.name not in answers])
    types = {name: pyarrow.int64() if name.endswith("_tokens") else pyarrow.string() for name in answers}
    schema = pyarrow.schema([*kept, *(pyarrow.field(name, type) for name, type in types.items())])
    try:
        with parquet.ParquetWriter(file, schema) as writer:
            some = first
            while some:
                writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
                some = _take(rows)
    except pyarrow.ArrowException as e:
        why = one_line(e, 300)
        raise RequestError(f"{path}: a column has values of several types: {why}; write .jsonl instead") from None


def check_parquet(path: Path) -> None:
    """Whether there is what it takes, asked before anything is computed. Raises RequestError."""
    _pyarrow(path)


def _take(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for _, row in zip(range(_ROWS_AT_ONCE), rows, strict=False)]


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RequestError(f"{path}: Parquet needs pyarrow: pip install 'smallthinker[batch]'") from None
    return pyarrow, parquet
