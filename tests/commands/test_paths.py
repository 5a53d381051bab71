"""Whatever lies at a path that a command takes: one line, soon, and it lies there as before."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, random_reference, tiny_config, write_checkpoint

from smallthinker.benchmark.results import read_results
from smallthinker.cli import main
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.expert_store.sources.torch_file import TorchFile
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.llm import LLM
from smallthinker.models.registry import read_model
from smallthinker.prediction.needs import find_model
from smallthinker.router.trace import load_trace

READ = [
    "run -m {} x", "run --storage {} x", "run --lossy-head {} x", "chat -m {}", "chat --storage {}",
    "serve {} --port 0", "serve --port 0 --api-key-file {}", "serve --port 0 --storage {}",
    "serve --port 0 --lossy-head {}", "inspect {}", "convert {} out", "synth {} out",
    "trace {} --text text -o out", "trace --text {} -o out", "cache-sim {}", "calibrate {} --text text",
    "calibrate store --text {}", "plan {}", "plan --storage {}", "plan --trace {}",
    "eval perplexity {} --text text", "eval perplexity --text {}", "eval compare {} store --text text",
    "eval compare store {} --text text", "eval compare store store --text {}", "bench {} -o out",
    "bench store -o out --text {}", "bench store -o out --storage {}", "bench --submit {}",
    "bench compare {} {}",
]  # fmt: skip
WRITTEN = [
    "trace store --text text -o {}", "trace store --text text -o {} --force", "probe . -o {}", "probe . -o {} --force",
    "convert checkpoint {}", "convert checkpoint {} --force", "synth checkpoint/config.json {} --force",
    "bench store -o {} --memory 200MiB", "serve --port 0 --kv-dir {}", "pull owner/name {} --force --endpoint HUB",
]  # fmt: skip
FILES = [
    *(f"store/{name}" for name in ("config.json", "tokenizer.json", "dense.safetensors", "experts.safetensors")),
    *(f"checkpoint/{name}" for name in ("config.json", "generation_config.json", "tokenizer.json")),
    *(f"checkpoint/{name}" for name in ("tokenizer_config.json", "chat_template.jinja")),
    *(f"checkpoint/{name}" for name in ("special_tokens_map.json", "added_tokens.json")),
    *(f"checkpoint/{name}" for name in ("model.safetensors", "model.safetensors.index.json")),
    "model.gguf",
]
LONG = {"long": "x" * 300, "very long": "x/" * 2500, "longest": "x" * 5000, "no UTF-8": "\udcff\udcfe"}


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": bound,
    "sparse": sparse,
    "folder": Path.mkdir,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, hybrid_store: Path) -> Path:
    """A working folder with a store, a checkpoint and a text."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(hybrid_store, folder / "store")
    write_checkpoint(random_reference(tiny_config(**HYBRID_ATTENTION)), folder / "checkpoint")
    (folder / "text").write_text("a text " * 100)
    return folder


@pytest.fixture(autouse=True)
def nothing_waits(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that waits for a pipe ends with the alarm, and with a test that fails."""
    monkeypatch.chdir(place)
    before = listing(place)
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the command waited"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    assert listing(place) == before


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    learned = ("disk-profile.json", "hot-experts.safetensors")  # a start may leave these in a store
    found = {str(p.relative_to(folder)): p.lstat() for p in folder.rglob("*") if p.name not in learned}
    return {name: (stat.S_IFMT(status.st_mode), status.st_ino) for name, status in found.items()}


def assert_one_line(command: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    code = main([argument.format(*arguments) for argument in command.split(" ")])
    said = capsys.readouterr()
    assert code == 2 and "internal error" not in said.err, said
    lines = [
        line for line in said.err.splitlines() if not line.startswith(("the disk is", "warning", "model ", "disk"))
    ]
    assert ": error: " in lines[-1] and said.out == "" and len(lines[-1]) < 6000, said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", READ)
def test_what_is_read_is_an_ordinary_file(
    place: Path, tmp_path: Path, command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](tmp_path / "x")
    assert_one_line(command, capsys, str(tmp_path / "x"), str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (command, kind)
        for command in WRITTEN
        for kind in KINDS
        if kind != "folder" and not (kind == "sparse" and command.endswith("-o {} --force"))  # which replaces a file
    ],
)
def test_what_is_written_replaces_nothing_but_ordinary_files(
    place: Path, tmp_path: Path, command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](tmp_path / "x")
    before = (tmp_path / "x").lstat()
    with FakeHub() as hub:
        hub.add("owner/name", place / "checkpoint")
        assert_one_line(command.replace("HUB", hub.url), capsys, str(tmp_path / "x"))
    assert os.path.samestat((tmp_path / "x").lstat(), before) and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *((command, kind) for command in READ for kind in LONG),
        *((command, kind) for command in WRITTEN if "pull" not in command for kind in LONG if kind != "no UTF-8"),
    ],
)
def test_a_path_that_is_too_long_or_no_text_is_one_line(
    command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(command, capsys, LONG[kind], LONG[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_store_or_checkpoint_is_an_ordinary_file(
    place: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("store", "checkpoint"):
        shutil.copytree(place / folder, tmp_path / folder)
    if "index" in name:
        (tmp_path / "checkpoint" / "model.safetensors").rename(tmp_path / "checkpoint" / "model-1-of-1.safetensors")
    (tmp_path / name).unlink(missing_ok=True)
    KINDS[kind](tmp_path / name)
    if name.startswith("store/"):
        assert_one_line("run -m {} x", capsys, str(tmp_path / "store"))
    else:
        source = tmp_path / ("checkpoint" if name.startswith("checkpoint/") else name)
        assert_one_line("convert {} out", capsys, str(source))


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_template_that_is_no_ordinary_file_is_one_line(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    (tmp_path / "store" / "tokenizer_config.json").unlink()
    KINDS[kind](tmp_path / "store" / "tokenizer_config.json")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", "-m", str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err
    assert ": error: " in said and "tokenizer_config.json" in said and said.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_hint_that_is_no_ordinary_file_is_none(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    for name in ("disk-profile.json", "hot-experts.safetensors", "predictor.safetensors"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
        KINDS[kind](tmp_path / "store" / name)
    assert main(["run", "-m", str(tmp_path / "store"), "--max-tokens", "1", "x"]) == 0


def test_a_store_and_a_trace_under_names_that_are_no_utf8_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, trace = str(tmp_path / "st\udcffre"), str(tmp_path / "tr\udcffce")
    for command in ("convert checkpoint {0}", "run -m {0} --max-tokens 1 x", "trace {0} --text text -o {1}",
                    "inspect {0}", "verify {0}", "cache-sim {1}", "plan {0} --storage emmc --trace {1}"):  # fmt: skip
        assert main([argument.format(store, trace) for argument in command.split(" ")]) == 0, capsys.readouterr()


ANY_NAME = st.text(st.characters(), max_size=40) | st.sampled_from(list(LONG.values()))
OPENERS: dict[str, Callable[[str], object]] = {
    "Store": Store.open,
    "LLM": LLM,
    "LLM's storage": lambda path: LLM(storage=path),
    "LLM's lossy head": lambda path: LLM(lossy_head=path),
    "convert from": lambda path: convert(path, "nowhere/store", "q4_0"),
    "synth from": lambda path: synth(path, "nowhere/store", "q4_0"),
    "convert to": lambda path: convert("checkpoint", f"nowhere/{path}", "q4_0"),
    "trace": lambda path: load_trace(Path(path)),
    "torch": TorchFile,
    "profile": load_profile,
    "results": lambda path: read_results(Path(path), lambda _: None),
    "plan": find_model,
    "config": read_model,
}


@pytest.mark.parametrize("opener", OPENERS)
@settings(max_examples=20)
@given(name=ANY_NAME)
def test_any_text_is_a_path_or_an_error_of_the_projects_own(opener: str, name: str) -> None:
    with pytest.raises(SmallThinkerError) as refused:
        OPENERS[opener](f"nowhere/{name}")  # a folder that isn't there
    assert str(refused.value)
