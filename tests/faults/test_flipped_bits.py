"""A bit is flipped anywhere in a model's files: an error that says where, or the very same answer, never another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import rounded_checkpoint, write_gguf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker.cli import main
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.store import Store

PROMPT = b"the cat went"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flipped")
    plain, _ = make_store(tiny_config(**HYBRID_ATTENTION), folder, "q4_0")
    compressed = convert(folder / "checkpoint", folder / "compressed", "f16", compress=1)
    (other := folder / "other").mkdir()
    make_store(tiny_config(), other)
    rounded_checkpoint(other / "checkpoint", "Q4_0")
    gguf = write_gguf(other / "checkpoint", folder / "tiny.gguf", "Q4_0")
    assert main(["verify", str(gguf)]) == 0
    return {"plain": plain, "compressed": compressed, "gguf": gguf}


def logits(path: Path, **options: Any) -> list[np.ndarray]:
    """Of a model that must read each expert several times."""
    with Engine(path, threads=1, max_slots=3, chunk=4, hot_set=False, **options) as engine:
        return [engine.prefill(PROMPT)[0].copy(), *(engine.decode(token).copy() for token in b" out")]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def files_of(model: Path) -> list[Path]:
    return sorted(model.iterdir()) if model.is_dir() else sorted(model.parent.glob(f"{model.name}*"))


@contextmanager
def flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))


@pytest.mark.parametrize("examples", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["plain", "compressed", "gguf"])
def test_a_flipped_bit_is_found_or_nothing_reads_it(name: str, examples: int, models: dict[str, Path]) -> None:
    model = models[name]
    expected = logits(model)
    assert same(logits(model, verify="always"), expected)
    files = files_of(model)
    assert len(files) == (2 if name == "gguf" else 6), files

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(file=st.sampled_from(files), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    @example(file=files[0], place=0.0, bit=1)
    @example(file=files[-1], place=0.9999, bit=7)
    def check(file: Path, place: float, bit: int) -> None:
        at = int(place * file.stat().st_size)
        with flipped(file, at, bit):
            found, error = None, ""
            try:
                found = logits(model, verify="always")
            except SmallThinkerError as e:
                error = str(e)
            assert found is None or same(found, expected), (file.name, at, bit)
            assert found is not None or (str(model.parent) in error and "\n" not in error)

    check()
    assert same(logits(model, verify="always"), expected)


@pytest.mark.parametrize("name", ["plain", "compressed", "gguf"])
def test_verify_finds_a_flipped_bit_wherever_anything_is_read(
    name: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = models[name]
    assert main(["verify", str(model)]) == 0
    assert "whole" in capsys.readouterr().out
    places = _read_places(model)
    for file, at in places:
        with flipped(file, at, 3):
            code = main(["verify", str(model)])
            error = capsys.readouterr().err
            assert code in (1, 2), (file, at)
            assert file.name in error
            assert error.count("\n") == 1
            if code == 1:
                assert "expected" in error
                assert "found" in error
    assert main(["verify", str(model)]) == 0


def _read_places(model: Path) -> list[tuple[Path, int]]:
    """The first and last byte of each tensor and of each small file."""
    with Store.open(model) as store:
        if model.is_dir():
            weights = [
                (file.path, t.offset, t.nbytes) for file in (store.dense_file, store.experts_file) for t in file.tensors
            ]
            small = [(path, 0, path.stat().st_size) for path in files_of(model) if path.suffix == ".json"]
            spans = [*weights[::16], *(span for span in small if span[0].name != "manifest.json")]
        else:
            spans = [(model, int(s["start"]), int(s["nbytes"])) for s in store.checksums._spans()][::16]
    return [(path, at) for path, start, nbytes in spans for at in (start, start + nbytes - 1)]


def test_a_store_without_a_manifest_opens_and_says_what_is_unchecked(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(models["plain"], older)
    (older / "manifest.json").unlink()
    assert same(logits(older, verify="always"), logits(models["plain"]))
    assert main(["verify", str(older)]) == 0
    assert f"note: {older}: has no manifest.json" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_small_file_may_be_edited_and_damage_says_how_to_go_on(
    name: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(models["plain"], changed)
    text = (changed / name).read_bytes()
    (changed / name).write_bytes(text + b"\n")
    assert same(logits(changed), logits(models["plain"]))
    assert main(["verify", str(changed)]) == 0
    assert f"note: {changed / name}: was edited" in capsys.readouterr().out
    (changed / name).write_bytes(text.replace(b'"', b"'", 1))
    with pytest.raises(SmallThinkerError):
        logits(changed)
    (changed / name).write_bytes(text.replace(b" ", b"\t", 1))
    with pytest.raises(SmallThinkerError, match=rf"{name}: byte 0: checksum.*on purpose deletes manifest\.json"):
        logits(changed)
    assert same(logits(changed, verify="never"), logits(models["plain"]))
    (changed / "manifest.json").unlink()
    assert same(logits(changed), logits(models["plain"]))


def test_a_file_whose_checksums_belong_to_another_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    shutil.copyfile(models["gguf"], gguf)
    beside = gguf.with_name("tiny.gguf.checksums")
    data = bytearray(Path(f"{models['gguf']}.checksums").read_bytes())
    for damaged, words in (
        (data[:-24], "lie|expected"),
        (bytes(reversed(data)), "header"),
        (data[:-1] + b"\xff", "checksum"),
    ):
        beside.write_bytes(damaged)
        with pytest.raises(SmallThinkerError, match=words):
            Engine(gguf)
    beside.unlink()
    Engine(gguf).close()


def test_checksums_are_kept_in_the_cache_folder_where_none_can_lie_beside(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallthinker.expert_store import sidecar

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf = tmp_path / "tiny.gguf"
    shutil.copyfile(models["gguf"], gguf)
    write = sidecar.write_whole

    def refusing(path: Path, data: bytes) -> None:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        write(path, data)

    monkeypatch.setattr(sidecar, "write_whole", refusing)
    assert main(["verify", str(gguf)]) == 0
    assert f"compared with {tmp_path / 'cache'}" in capsys.readouterr().out
    assert not Path(f"{gguf}.checksums").exists()
    last = _read_places(gguf)[-1][1]
    with flipped(gguf, last, 0), pytest.raises(SmallThinkerError, match="checksum"):
        logits(gguf)
