"""Less of the system than a command wants: room on the disk, descriptors, memory. One line or the very same result."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ended_commands import everything, run
from gguf_files import rounded_checkpoint, write_gguf
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

from smallthinker.benchmark.cgroup import CGROUPS, is_v2, joining

SAID = "run -m store --max-tokens 3 --temperature 0 --raw hello"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    (folder / "made").mkdir()
    make_store(tiny_config(**HYBRID_ATTENTION), folder / "made", "q4_0")
    shutil.move(folder / "made" / "checkpoint", folder / "hf")
    store = next(path for path in (folder / "made").iterdir() if (path / "dense.safetensors").exists())
    shutil.move(store, folder / "store")
    (folder / "made").rmdir()
    make_store(tiny_config(), folder / "gguf")
    rounded_checkpoint(folder / "gguf" / "checkpoint", "Q4_0")
    write_gguf(folder / "gguf" / "checkpoint", folder / "tiny.gguf", "Q4_0")
    shutil.rmtree(folder / "gguf")
    (folder / "text").write_text("a text " * 60)
    return folder


WRITING = [
    ("convert hf out --quant f16", 30_000),
    ("convert hf out --quant f16 --compress", 30_000),
    ("convert hf out", 100),
    ("synth hf/config.json out --quant q8_0", 30_000),
    ("synth hf/config.json out --quant none", 30_000),
    ("trace store --text text -o out", 200),
    ("calibrate store --text text", 500),
    ("alias ./store one", 10),
    ("bench store --out out --tokens 1 --prompt-tokens 4", 100),
]


def one_line_and_nothing_changed(command: str, folder: Path, cache: Path, limits: dict[int, int]) -> None:
    before = everything(folder)
    env = {"SMALLTHINKER_MODELS": str(folder / "models"), "XDG_CACHE_HOME": str(cache)}
    ended = run(command, folder, env=env, limits=limits)
    assert ended.code == 2, ended
    last = ended.err.splitlines()[-1]
    assert "error: " in last
    assert "Traceback" not in ended.err
    after = {key: value for key, value in everything(folder).items() if value is not None}  # but for empty folders
    assert {key for key in after if before.get(key) != after[key]} == set()


@pytest.mark.parametrize(("command", "room"), WRITING)
def test_a_full_disk_is_one_line_and_leaves_nothing(command: str, room: int, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    one_line_and_nothing_changed(command, folder, tmp_path / "cache", {resource.RLIMIT_FSIZE: room})


@pytest.fixture(params=["full", "quota"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A small file system, or a part of one that may hold no more than this; and what says that it is full."""
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs root and btrfs-progs")
    at, image = tmp_path / "mounted", tmp_path / "image"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    if request.param == "full":
        commands = [f"mount -t tmpfs -o size=24m none {at}"]
    else:
        limit = [f"btrfs subvolume create {at}/ours", f"btrfs quota enable {at}", f"btrfs qgroup limit 24M {at}/ours"]
        commands = [f"mkfs.btrfs -q {image}", f"mount -o loop {image} {at}", *limit]
    for command in commands:
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
    yield (at / "ours", errno.EDQUOT) if request.param == "quota" else (at, errno.ENOSPC)
    subprocess.run(["umount", at], check=True)


@pytest.mark.slow
def test_a_full_file_system_and_a_quota_that_is_used_up_are_one_line(
    mounted: tuple[Path, int], place: Path, tmp_path: Path
) -> None:
    folder = mounted[0] / "here"
    shutil.copytree(place, folder)
    filler = os.open(mounted[0] / "filler", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096):
        with pytest.raises(OSError, match=os.strerror(mounted[1])):
            while True:
                os.write(filler, bytes(size))
                os.fsync(filler)
    os.close(filler)
    for command, _ in WRITING:
        one_line_and_nothing_changed(command, folder, tmp_path / "cache", {})


def test_checksums_that_find_no_room_are_said_and_change_nothing(place: Path, tmp_path: Path) -> None:
    shutil.copyfile(place / "tiny.gguf", tmp_path / "tiny.gguf")
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ended = run("verify tiny.gguf", tmp_path, env=env, limits={resource.RLIMIT_FSIZE: 100})
    assert ended.code == 0, ended
    assert "can't be kept" in ended.out
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.gguf"]


@pytest.mark.parametrize("model", ["store", "tiny.gguf"])
def test_with_any_number_of_descriptors_a_model_answers_or_one_line_says_why(model: str, place: Path) -> None:
    command = SAID.replace("store", model)
    expected = run(command, place).out
    assert expected
    codes = set()
    for files in (6, 8, 10, 24):
        ended = run(command, place, limits={resource.RLIMIT_NOFILE: files})
        codes.add(ended.code)
        if ended.code == 0:
            assert ended.out == expected
        else:
            assert ended.code == 2, (files, ended)
            assert ended.err.strip().count("\n") == 0, (files, ended)
            assert "Traceback" not in ended.err
    assert codes == {0, 2}


@pytest.fixture
def few_threads() -> Iterator[Path]:
    """A control group whose `pids.max` says how many threads it may have."""
    folder = (CGROUPS if is_v2() else CGROUPS / "pids") / f"smallthinker-threads-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as e:
        pytest.skip(f"needs root and a control group of threads: {e}")
    if not (folder / "pids.max").exists():
        folder.rmdir()
        pytest.skip("needs a control group of threads")
    yield folder
    folder.rmdir()


def test_with_any_number_of_threads_a_model_answers_or_one_line_says_why(few_threads: Path, place: Path) -> None:
    expected = run(SAID, place).out
    codes = []
    for threads in (1, 2, 4, 6, 8, 16):
        (few_threads / "pids.max").write_text(str(threads))
        command = joining([few_threads], [sys.executable, "-m", "smallthinker", *SAID.split()])
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        codes.append(ended.returncode)
        if ended.returncode == 0:
            assert ended.stdout == expected
        else:
            assert ended.returncode == 2, (threads, ended)
            assert ended.stderr.count("\n") == 1 and "error: no memory or threads left" in ended.stderr, (
                threads,
                ended,
            )
    assert codes[0] == 2 and codes[-1] == 0 and codes == sorted(codes, reverse=True)
