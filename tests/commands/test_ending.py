"""A command that is told to end, by whatever signal, cleans up as after Ctrl-C and says so by its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import FakeHub
from tiny_models import HYBRID_ATTENTION, random_reference, tiny_config, write_checkpoint

# The interpreter tells its audit hooks of every file that it opens: there the signal comes, in the middle of the work.
ENDED_AT = """
import os, sys
number, event, part, *arguments = sys.argv[1:]
def hook(name, values):
    global part
    if part and name == event and part in str(values[0]):
        part = ""
        os.kill(os.getpid(), int(number))
        os.kill(os.getpid(), int(number))  # `timeout` tells a process twice
sys.addaudithook(hook)
from smallthinker.cli import main
sys.exit(main(arguments))
"""


def ended_at(number: int, event: str, part: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    heard = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)"  # whatever a nohup around the tests ignores
    command = [sys.executable, "-c", heard + ENDED_AT, str(int(number)), event, part, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(random_reference(tiny_config(**HYBRID_ATTENTION)), tmp_path_factory.mktemp("ending") / "hf")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a text. " * 200)
    return path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_that_is_told_to_end_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, number: int) -> None:
    done = ended_at(number, "open", "experts.safetensors", "convert", checkpoint, tmp_path / "store")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert everything(tmp_path) == {}


def test_a_synthesis_that_is_told_to_end_leaves_the_old_store(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "config.json").write_text("old")
    before = everything(tmp_path)
    synth = ["synth", checkpoint / "config.json", tmp_path / "store", "--force"]
    done = ended_at(signal.SIGTERM, "open", "experts.safetensors", *synth)
    assert (done.returncode, done.stderr) == (143, "")
    assert everything(tmp_path) == before


def test_a_trace_and_a_calibration_that_are_told_to_end_leave_the_old_file(hybrid_store: Path, text: Path) -> None:
    folder = text.parent
    (folder / "old.trace").write_text("old")
    before = everything(folder), everything(hybrid_store)
    trace = ["trace", hybrid_store, "--text", text, "-o", folder / "old.trace", "--force"]
    assert ended_at(signal.SIGTERM, "open", ".old.trace.", *trace).returncode == 143
    calibrate = ["calibrate", hybrid_store, "--text", text, "--tokens", "256", "--force"]
    assert ended_at(signal.SIGTERM, "open", ".predictor.safetensors.", *calibrate).returncode == 143  # learned already
    assert (everything(folder), everything(hybrid_store)) == before


def test_a_benchmark_that_is_told_to_end_ends_its_measurement_too(hybrid_store: Path, tmp_path: Path) -> None:
    bench = ["bench", hybrid_store, "--memory", "200MiB", "-o", tmp_path / "results"]
    done = ended_at(signal.SIGTERM, "subprocess.Popen", "python", *bench)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["results.jsonl"]


def test_a_download_that_is_told_to_end_keeps_what_has_come_and_no_store(checkpoint: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        hub.add("owner/name", checkpoint)
        pull = ["pull", "owner/name", tmp_path / "store", "--endpoint", hub.url]
        done = ended_at(signal.SIGTERM, "open", "experts.safetensors", *pull)
    assert (done.returncode, done.stdout) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == ["store.download"]


def test_a_signal_that_the_caller_ignores_stays_ignored(checkpoint: Path, tmp_path: Path) -> None:
    """As `nohup` has it."""
    command = [sys.executable, "-c", ENDED_AT, str(int(signal.SIGHUP)), "open", "experts.safetensors"]
    done = subprocess.run(
        [*command, "convert", str(checkpoint), str(tmp_path / "store")],
        capture_output=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "store" / "experts.safetensors").exists()
