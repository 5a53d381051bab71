"""Where a pull writes: what is there of the user's stays, and two pulls don't meet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hub_server import FakeHub
from pulling import REPO, command, connect, environment, store_files

from smallthinker.errors import DownloadError, StoreWriteError
from smallthinker.expert_store.convert import convert
from smallthinker.hub.pull import Pull


def test_the_folder_of_the_download_gives_the_store_nothing_else_and_loses_nothing_else(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store.download"
    folder.mkdir()
    (folder / ".smallthinker-pull").touch()  # from an earlier try
    (folder / "chat_template.jinja").write_text("another model's")
    (folder / "model.safetensors").write_bytes(b"another model's")
    (folder / "notes.txt").write_text("the user's")
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "model.safetensors.index.json"])
def test_a_folder_with_files_of_the_users_is_left_as_it_is(hub: FakeHub, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "store.download"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(DownloadError, match=rf"{name}: .* move it, or give `force`"):
        Pull(connect(hub), tmp_path / "store").run()
    assert (folder / name).read_text() == "mine" and not (tmp_path / "store").exists()
    store = Pull(connect(hub), tmp_path / "store", force=True).run()
    assert store.is_dir() and not folder.exists()


def test_a_download_that_was_kept_is_used_and_stays(hub: FakeHub, tmp_path: Path) -> None:
    Pull(connect(hub), tmp_path / "store").run(keep_download=True)
    kept = store_files(tmp_path / "store.download")
    shutil.rmtree(tmp_path / "store")
    hub.requests = []
    Pull(connect(hub), tmp_path / "store").run()
    assert store_files(tmp_path / "store.download") == kept
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]


@pytest.mark.parametrize("out", [".", "mounted", "x" * 250, "x" * 300, "a\0b"])
def test_a_place_where_no_store_can_be_is_refused_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreWriteError, match=r"which can't be replaced|name|null"):
        Pull(connect(hub), Path("/proc" if out == "mounted" else out))
    assert list(tmp_path.iterdir()) == []


def test_with_keep_download_the_checkpoint_stays_and_converts(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    pull.run(keep_download=True)
    assert convert(pull.download, tmp_path / "again", "q8_0").is_dir()


def test_a_store_that_is_there_is_refused_at_once_and_replaced_by_force_only_at_the_end(
    hub: FakeHub, tmp_path: Path
) -> None:
    store = Pull(connect(hub), tmp_path / "store").run()
    before = store_files(store)
    hub.requests = []
    with pytest.raises(StoreWriteError, match=r"exists already; `force` replaces it"):
        Pull(connect(hub), store)
    assert not [name for name, _ in hub.fetched() if name.endswith(".safetensors")]
    hub.damaged = {max(hub.repos[REPO], key=lambda name: len(hub.repos[REPO][name]) * name.endswith("tensors"))}
    with pytest.raises(DownloadError):
        Pull(connect(hub), store, "q8_0", force=True).run()
    assert store_files(store) == before


def test_two_pulls_of_one_store_do_not_meet(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_after = 3000
    process = subprocess.Popen(command(REPO, "store"), env=environment(hub, tmp_path), cwd=tmp_path)
    try:
        assert hub.stalled.wait(60)
        with pytest.raises(StoreWriteError, match="another process is downloading into it"):
            Pull(connect(hub), tmp_path / "store").run()
    finally:
        process.kill()
        process.wait()
