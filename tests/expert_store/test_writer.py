"""A store appears whole or not at all: refusals, failures, kills, full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallthinker import host
from smallthinker.errors import StoreWriteError
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth

Run = Callable[..., subprocess.CompletedProcess[str]]

SYNTH_KILLED_AT_CALL = """
import os, signal, sys
from smallthinker.expert_store.synthetic.synth import synth
calls = 0
def progress(done, total, what):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
synth(sys.argv[1], sys.argv[2], "q4_0", seed=1, force=True, progress=progress)
"""

SYNTH_KILLED_WHILE_PUBLISHING = """
import os, pathlib, signal, sys
from smallthinker import host
from smallthinker.expert_store.synthetic.synth import synth
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
rename, exchange, sync = pathlib.Path.rename, host.exchange_folders, host.sync_folder
def rename_then_kill(self, target):
    rename(self, target); kill()
def exchange_then_kill(a, b):
    assert exchange(a, b); kill()
match sys.argv[3]:
    case "before rename": pathlib.Path.rename = kill
    case "after rename": pathlib.Path.rename = rename_then_kill
    case "before exchange": host.exchange_folders = kill
    case "after exchange": host.exchange_folders = exchange_then_kill
    case "between two renames":
        host.exchange_folders = lambda a, b: False
        pathlib.Path.rename = rename_then_kill
synth(sys.argv[1], sys.argv[2], "q4_0", seed=1, force=True)
"""


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_store_that_exists_is_not_overwritten(tiny_config: Path, tiny_store: Path) -> None:
    before = contents(tiny_store)
    with pytest.raises(StoreWriteError, match="exists already; `force`"):
        synth(str(tiny_config), tiny_store, "q4_0", seed=1)
    assert contents(tiny_store) == before
    assert names(tiny_store.parent) == ["store"]


@pytest.mark.parametrize("atomic", [True, False])
def test_force_replaces_a_store(
    tiny_config: Path, tiny_store: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:  # systems without an exchange
        monkeypatch.setattr(host, "exchange_folders", lambda a, b: False)
    before = contents(tiny_store)
    synth(str(tiny_config), tiny_store, "q4_0", seed=1, force=True)
    assert contents(tiny_store).keys() == before.keys()
    assert contents(tiny_store) != before
    Store.open(tiny_store).verify()
    assert names(tiny_store.parent) == ["store"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_failure_keeps_the_old_store_and_leaves_nothing_else(
    tiny_config: Path, tiny_store: Path, error: type[BaseException]
) -> None:
    before = contents(tiny_store)

    def fail(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise error("no")

    with pytest.raises((error, StoreWriteError)):
        synth(str(tiny_config), tiny_store, "q4_0", seed=1, force=True, progress=fail)
    assert contents(tiny_store) == before
    assert names(tiny_store.parent) == ["store"]


def test_force_never_deletes_what_is_no_store(tiny_config: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreWriteError, match=r"thesis\.txt"):
        synth(str(tiny_config), tmp_path / "home", "q4_0", force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreWriteError, match="not a folder"):
        synth(str(tiny_config), tmp_path / "file", "q4_0", force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_missing_parent_is_named(tiny_config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    synth(str(tiny_config), tmp_path / "empty", "q4_0")
    Store.open(tmp_path / "empty").verify()
    with pytest.raises(StoreWriteError, match="doesn't exist; create it first"):
        synth(str(tiny_config), tmp_path / "no" / "store", "q4_0")


def test_a_folder_that_someone_else_makes_meanwhile_is_kept(tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"

    def interfere(done: int, total: int, what: str) -> None:
        out.mkdir(exist_ok=True)
        (out / "theirs").write_text("x")

    with pytest.raises(StoreWriteError, match="created by someone else"):
        synth(str(tiny_config), out, "q4_0", progress=interfere)
    assert names(tmp_path) == ["store"]
    assert names(out) == ["theirs"]


@pytest.mark.parametrize("call", [1, 5, 20, 23])
def test_a_kill_while_writing_leaves_none_and_the_next_run_cleans_up(
    tiny_config: Path, tmp_path: Path, call: int, run_python: Run
) -> None:
    out = tmp_path / "store"
    assert run_python(SYNTH_KILLED_AT_CALL, tiny_config, out, call).returncode == -9
    assert not out.exists()
    assert len(names(tmp_path)) == 1  # the hidden, unfinished folder
    synth(str(tiny_config), out, "q4_0")
    assert names(tmp_path) == ["store"]


@pytest.mark.parametrize("call", [1, 20])
def test_a_kill_while_replacing_leaves_the_old_store(
    tiny_config: Path, tiny_store: Path, call: int, run_python: Run
) -> None:
    before = contents(tiny_store)
    assert run_python(SYNTH_KILLED_AT_CALL, tiny_config, tiny_store, call).returncode == -9
    assert contents(tiny_store) == before


@pytest.mark.parametrize("moment", ["before rename", "after rename"])
def test_a_kill_while_publishing_leaves_none_or_a_whole_store(
    tiny_config: Path, tmp_path: Path, moment: str, run_python: Run
) -> None:
    out = tmp_path / "store"
    assert run_python(SYNTH_KILLED_WHILE_PUBLISHING, tiny_config, out, moment).returncode == -9
    assert out.exists() == (moment == "after rename")
    if out.exists():
        Store.open(out).verify()


@pytest.mark.parametrize("moment", ["before exchange", "after exchange"])
def test_a_kill_while_exchanging_leaves_one_of_the_two_stores(
    tiny_config: Path, tiny_store: Path, moment: str, run_python: Run
) -> None:
    before = contents(tiny_store)
    assert run_python(SYNTH_KILLED_WHILE_PUBLISHING, tiny_config, tiny_store, moment).returncode == -9
    Store.open(tiny_store).verify()
    assert (contents(tiny_store) == before) == (moment == "before exchange")
    synth(str(tiny_config), tiny_store, "q4_0", force=True)
    assert names(tiny_store.parent) == ["store"]


def test_without_an_exchange_the_next_run_puts_back_the_store_that_a_kill_hid(
    tiny_config: Path, tiny_store: Path, run_python: Run
) -> None:
    before = contents(tiny_store)
    run = run_python(SYNTH_KILLED_WHILE_PUBLISHING, tiny_config, tiny_store, "between two renames")
    assert run.returncode == -9
    assert not tiny_store.exists()
    with pytest.raises(StoreWriteError, match="exists already"):
        synth(str(tiny_config), tiny_store, "q4_0")
    assert contents(tiny_store) == before
    assert names(tiny_store.parent) == ["store"]


def test_a_running_writer_is_not_taken_for_a_dead_one(tiny_config: Path, tmp_path: Path) -> None:
    other: list[Path] = []

    def second_writer(done: int, total: int, what: str) -> None:
        if not other:
            other.append(tmp_path)
            synth(str(tiny_config), tmp_path / "store", "q4_0", seed=2)

    with pytest.raises(StoreWriteError, match="created by someone else"):
        synth(str(tiny_config), tmp_path / "store", "q4_0", seed=1, progress=second_writer)
    Store.open(tmp_path / "store").verify()
    assert names(tmp_path) == ["store"]


def test_too_little_free_space_is_noticed_before_writing(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StoreWriteError, match=r"needs \d+ bytes, the disk has 1000 free"):
        synth(str(tiny_config), tmp_path / "store", "q4_0")
    assert names(tmp_path) == []


def test_a_file_size_limit_ends_in_one_error_with_needed_and_free_bytes(
    tiny_config: Path, tmp_path: Path, run_python: Run
) -> None:
    script = """
import resource, sys
from smallthinker.errors import StoreWriteError
from smallthinker.expert_store.synthetic.synth import synth
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    synth(sys.argv[1], sys.argv[2], "q4_0")
except StoreWriteError as e:
    print(e)
"""
    run = run_python(script, tiny_config, tmp_path / "store")
    assert "file size limit" in run.stdout, run.stderr
    assert "needs" in run.stdout
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mount)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root; RLIMIT_FSIZE covers the same path")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("compress", [None, 3])
def test_a_disk_that_fills_up_meanwhile_ends_in_one_error_and_is_left_clean(
    tiny_config: Path, small_disk: Path, compress: int | None
) -> None:
    def fill(done: int, total: int, what: str) -> None:
        filler = small_disk / "filler"
        if not filler.exists():
            statistics = os.statvfs(small_disk)
            filler.write_bytes(bytes(statistics.f_bavail * statistics.f_bsize))

    with pytest.raises(StoreWriteError, match="disk full"):
        synth(str(tiny_config), small_disk / "store", "q4_0", progress=fill, compress=compress)
    assert names(small_disk) == ["filler"]


def test_a_store_never_takes_the_place_of_what_it_is_made_from(tmp_path: Path, tiny_store: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_store)
    (tmp_path / "config.json").symlink_to(tiny_store / "config.json")
    before = contents(tiny_store)
    for shape in (tiny_store / "config.json", tmp_path / "config.json"):
        for out in (tiny_store, tmp_path / "link"):
            with pytest.raises(StoreWriteError, match=r"holds .*config\.json, which this is made from"):
                synth(str(shape), out, "q4_0", force=True)
    assert contents(tiny_store) == before


def test_the_folder_that_a_command_runs_in_is_not_replaced(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out in (".", tmp_path / "empty", "../empty"):
        with pytest.raises(StoreWriteError, match="the folder that this command runs in"):
            synth(str(tiny_config), out, "q4_0")
    assert synth(str(tiny_config), "store", "q4_0").is_dir()


@pytest.mark.parametrize("name", ["x" * 255, "\u20ac" * 85])
def test_a_store_may_have_the_longest_name(tiny_config: Path, tmp_path: Path, name: str) -> None:
    assert Store.open(synth(str(tiny_config), tmp_path / name, "q4_0")).num_experts > 0


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 2500, "a\0b", "\udcff" * 300])
def test_a_name_that_no_store_can_have_is_one_error(tiny_config: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreWriteError):
        synth(str(tiny_config), f"{tmp_path}/{name}", "q4_0")
