"""Files that change under a loaded model: the same answer, or an error with the file's name and byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from smallthinker.engine import Engine
from smallthinker.errors import StoreReadError

PROMPT, NEXT = b"the cat", b" went"


def opened(store: Path, reader: str) -> Engine:
    return Engine(store, threads=1, max_slots=3, hot_set=False, reader=reader)  # type: ignore[arg-type]


def answer(engine: Engine) -> list[np.ndarray]:
    return [engine.decode(token).copy() for token in NEXT]


@pytest.fixture
def store(hybrid_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hybrid_store, tmp_path / "store"))


@pytest.mark.parametrize("reader", ["direct", "mmap", "buffered"])
def test_a_file_that_is_replaced_is_read_on_as_it_was(reader: str, store: Path) -> None:
    with opened(store, reader) as engine:
        engine.prefill(PROMPT)
        expected = answer(engine)
    with opened(store, reader) as engine:
        engine.prefill(PROMPT)
        for path in list(store.iterdir()):
            path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
            path.with_suffix(".new").replace(path)
        shutil.rmtree(store)  # or its disk, as far as the system lets a mounted one go
        assert all(np.array_equal(a, b) for a, b in zip(answer(engine), expected, strict=True))


@pytest.mark.parametrize("reader", ["direct", "mmap", "buffered"])
@pytest.mark.parametrize("kept", [0, 5000])
def test_a_file_that_is_cut_is_one_error(reader: str, kept: int, store: Path) -> None:
    with opened(store, reader) as engine:
        engine.prefill(PROMPT)
        os.truncate(store / "experts.safetensors", kept)
        with pytest.raises(
            StoreReadError, match=r"experts\.safetensors: byte \d+: .*expected a file of \d+ bytes, found"
        ):
            answer(engine)


@pytest.mark.parametrize("reader", ["direct", "mmap", "buffered"])
def test_what_is_written_over_while_a_model_runs_is_found_where_it_is_read_first(reader: str, store: Path) -> None:
    with opened(store, reader) as engine:
        engine.prefill(PROMPT)
        path = store / "experts.safetensors"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        with pytest.raises(StoreReadError, match=r"experts\.safetensors: byte \d+: layers\.\d\.experts\.\d+: checksum"):
            for token in range(100, 200):
                engine.decode(token)
