"""Tables of which a token's row alone is read: they stay on disk, and what is read of them is checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from family_checkpoints import Made, make_checkpoint
from gguf_families import ARCHITECTURES, write

from smallthinker import _kernels
from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError, StoreReadError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.inspect import describe
from smallthinker.expert_store.sources.checkpoint import Checkpoint
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.byte_tokenizer import byte_tokenizer_files
from smallthinker.models.registry import parse_model
from smallthinker.models.tensors import LAYER_EMBEDDINGS

NAME, ROWS, GROUPS = "gemma4 small", 300, 19
TABLE_BYTES = GROUPS * (16 * 4 * 32 * 2 + 64)  # rows of 4 layers by 32 numbers in f16, and the sums


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make_checkpoint(NAME, tmp_path_factory.mktemp("table") / "checkpoint")
    config = parse_model(json.loads((made.folder / "config.json").read_text()))
    for file, content in byte_tokenizer_files(config).items():
        (made.folder / file).write_bytes(content)
    return made


@pytest.fixture(scope="module", params=["store", "gguf"])
def model(request: pytest.FixtureRequest, case: Made) -> Path:
    folder = case.folder.parent
    if request.param == "store":
        return convert(case.folder, folder / "store", "f16")
    path = write(case.folder, folder / "tiny.gguf", ARCHITECTURES[NAME], "F16")
    assert main(["verify", str(path)]) == 0  # checksums are there
    return path


def logits(path: Path, tokens: list[int], **options: Any) -> Any:
    with Engine(path, threads=1, **options) as engine:
        return np.stack([engine.prefill(tokens[:9])[0].copy(), *(engine.decode(token).copy() for token in tokens[9:])])


def test_rows_are_those_of_the_checkpoint(model: Path, case: Made) -> None:
    with Checkpoint(case.folder) as source:
        expected = source.read(LAYER_EMBEDDINGS).astype(np.float16).astype(np.float32)
    with Store.open(model) as store:
        groups = [store.table_rows(LAYER_EMBEDDINGS, group) for group in range(GROUPS)]
    rows = np.concatenate([_kernels.unpack("f16", "tiles", group, 16, 128) for group in groups])
    assert np.array_equal(rows[:ROWS], expected) and not rows[ROWS:].any()


def test_the_table_takes_no_memory(model: Path) -> None:
    with Store.open(model) as store:
        assert store.table_bytes == TABLE_BYTES and LAYER_EMBEDDINGS not in store.dense_names()
        assert describe(store)["bytes"]["tables"] == TABLE_BYTES
        with Engine(model) as engine:
            assert engine.plan.dense_bytes == store.dense_bytes
            assert sum(store.dense(name).nbytes for name in store.dense_names()) <= store.dense_bytes


def test_a_slower_disk_is_waited_for(model: Path, case: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    clock = SimpleNamespace(perf_counter=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr("smallthinker.expert_store.store.time", clock)
    tokens = [1, 2, 40, 40, 33, 299]
    with Engine(model, storage="sd-card") as engine:
        slept.clear()
        engine.prefill(tokens)
    assert len(slept) == 3 and min(slept) > 0  # of 0 to 15, 32 to 47, 288 to 303


def test_a_flipped_bit_of_a_row_is_an_error_that_names_it(model: Path, case: Made, tmp_path: Path) -> None:
    tokens = case.tokens[0].tolist()[:12]
    expected = logits(model, tokens)
    if model.is_dir():
        damaged, name = Path(shutil.copytree(model, tmp_path / "damaged")), "dense.safetensors"
    else:
        damaged, name = tmp_path / "damaged.gguf", ""
        shutil.copy(model, damaged)
        shutil.copy(f"{model}.checksums", f"{damaged}.checksums")
    file = damaged / name
    with Store.open(model) as store:
        rows = store.table_rows(LAYER_EMBEDDINGS, tokens[11] // 16)
    lane, stored, high_byte = tokens[11] % 16, rows.tobytes(), 5 * 32 + 1  # column by column
    at = high_byte + 2 * lane
    if not model.is_dir():  # row by row
        stored = _kernels.unpack("f16", "tiles", rows, 16, 128).astype(np.float16).tobytes()
        at = lane * 256 + 11
    content = bytearray(file.read_bytes())
    at += content.index(stored)
    content[at] ^= 64
    file.write_bytes(content)
    with pytest.raises(StoreReadError if model.is_dir() else SmallThinkerError) as raised:
        logits(damaged, tokens)
    first = tokens[11] // 16 * 16
    assert f"checksum of rows {first} to {first + 15} of tensor" in str(raised.value) and str(file) in str(raised.value)
    assert not np.array_equal(logits(damaged, tokens, verify="never"), expected)
    content[at] ^= 64
    file.write_bytes(content)
    assert np.array_equal(logits(damaged, tokens), expected)


def test_a_file_that_was_cut_short_is_one_error(case: Made, tmp_path: Path) -> None:
    store = convert(case.folder, tmp_path / "store", "f16")
    with Engine(store, threads=1) as engine:
        before = engine.prefill([1])[0].copy()
        with (store / "dense.safetensors").open("r+b") as file:
            file.truncate(file.seek(0, 2) - TABLE_BYTES // 2)
        engine.forget()
        assert np.array_equal(engine.prefill([1])[0], before)
        with pytest.raises(StoreReadError, match=r"dense\.safetensors: byte \d+: expected \d+ more bytes, found"):
            engine.decode(298)
        assert np.isfinite(engine.decode(2)).all()
