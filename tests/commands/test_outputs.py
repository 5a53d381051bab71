"""What a command writes never takes the place of what it reads, and a full disk leaves what was there."""

from __future__ import annotations

import io
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import HYBRID_ATTENTION, random_reference, tiny_config, write_checkpoint

from smallthinker.cli import main


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, hybrid_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a store and a text, and links to what is in them."""
    shutil.copytree(hybrid_store, tmp_path / "store")
    (tmp_path / "text").write_text("a text " * 100)
    (tmp_path / "soft").symlink_to("text")
    (tmp_path / "hard").hardlink_to(tmp_path / "text")
    (tmp_path / "config").symlink_to("store/config.json")
    (tmp_path / "stores").symlink_to("store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """A limit on a file's size is what any process has of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.parametrize(
    "command",
    [
        *(f"trace store --text text -o {out} --force" for out in ("text", "./text", "soft", "hard", "store/../text")),
        *(f"trace store --text text -o {out} --force" for out in ("store/config.json", "stores/config.json", "config")),
        "trace store --text soft -o text --force",
        "probe store -o store/experts.safetensors --force",
        "probe text -o hard --force",
        "calibrate store --text text --force",
        "convert store store --force",
        "synth store/config.json store --force",
        "synth config stores --force",
        "bench store -o store --force",
    ],
)
def test_no_command_writes_over_what_it_reads(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command.startswith("calibrate"):
        (place / "store" / "predictor.safetensors").hardlink_to(place / "text")
    before = contents(place)
    assert main(command.split(" ")) == 2
    said = capsys.readouterr()
    assert ": error: " in said.err and said.err.count("\n") == 1
    assert contents(place) == before


def test_a_checkpoint_is_not_replaced_by_its_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(random_reference(tiny_config(**HYBRID_ATTENTION)), tmp_path / "checkpoint")
    (tmp_path / "link").symlink_to("checkpoint")
    before = contents(tmp_path)
    for out in ("checkpoint", "link", "."):
        assert main(["convert", str(tmp_path / "link"), str(tmp_path / out), "--force"]) == 2
        assert "choose another name" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_an_old_trace_whole_and_no_half_of_a_new_one(
    place: Path, exists: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if exists:
        (place / "trace").write_bytes(b"old")
    before = contents(place)
    with full_disk(1000):
        assert main(["trace", "store", "--text", "text", "-o", "trace", *["--force"][:exists]]) == 2
    assert "cannot write the trace: File too large" in capsys.readouterr().err
    assert contents(place) == before


def test_a_full_disk_leaves_no_half_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/save talk.txt\n/save talk.json\n"))
    before = contents(place)
    with full_disk(5):
        main(["chat", "-m", "store", "--max-tokens", "5"])
    assert capsys.readouterr().out.count("not saved: File too large") == 2
    assert contents(place) == before
