"""What comes over a bad line, from a cache or from an earlier try: resumed, and its checksums compared."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hub_server import FakeHub
from pulling import REPO, command, connect, environment, smallthinker, store_files

from smallthinker.errors import DownloadError
from smallthinker.expert_store.convert import convert
from smallthinker.hub.pull import Pull
from smallthinker.hub.repository import MOST_TRIES


def test_a_dropped_connection_is_taken_up_where_it_ended(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.cut_after = [1000, 0, 5000]
    reports: list[tuple[int, int]] = []
    pull = Pull(connect(hub), tmp_path / "store")
    store = pull.run(downloading=lambda done, total, _: reports.append((done, total)))
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert reports[-1] == (pull.plan.download_bytes, pull.plan.download_bytes)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_a_redirected_file_is_resumed_as_well(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.redirects, hub.cut_after = True, [1000]
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, path, span, _ in hub.requests if path.startswith("/cdn/") and span] == ["bytes=1000-"]


def test_a_server_without_ranges_is_read_again_from_the_start(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    hub.cut_after, hub.knows_ranges = [1000], False
    store = Pull(connect(hub), tmp_path / "store").run()
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))


def test_a_connection_that_never_brings_anything_ends_in_one_error_and_what_came_stays(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.cut_after = [1000] + 100 * [0]
    with pytest.raises(DownloadError, match="run the command again, it goes on from there"):
        Pull(connect(hub), tmp_path / "store").run()
    spans = [span for _, span in hub.fetched()].count("bytes=1000-")
    assert spans == MOST_TRIES - 1
    assert not (tmp_path / "store").exists()
    hub.cut_after, hub.requests = [], []
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes > 1000
    assert store_files(pull.run()) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert [span for _, span in hub.fetched() if span] == ["bytes=1000-"]


def test_a_killed_pull_leaves_no_store_and_the_same_command_goes_on(
    hub: FakeHub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.stall_after = 3000
    process = subprocess.Popen(command(REPO, "store"), env=environment(hub, tmp_path), cwd=tmp_path)
    assert hub.stalled.wait(60)
    part = wait_for_part(tmp_path / "store.download", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "store").exists() and part.stat().st_size == 3000
    hub.stall_after, hub.requests = None, []
    result = smallthinker(hub, tmp_path, REPO, "store", "--json")
    assert result.returncode == 0, result.stderr
    assert [span for _, span in hub.fetched() if span] == ["bytes=3000-"]
    assert json.loads(result.stdout)["present_bytes"] > 3000
    assert store_files(tmp_path / "store") == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert not (tmp_path / "store.download").exists()


def wait_for_part(folder: Path, process: subprocess.Popen[bytes]) -> Path:
    """Until the bytes that the server has sent are in the file."""
    while process.poll() is None:
        for path in folder.glob("*.part"):
            if path.stat().st_size == 3000:
                return path
    raise AssertionError("the pull ended")


def test_a_wrong_checksum_is_one_error_and_the_bytes_are_deleted(hub: FakeHub, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    shard = next(file for file in pull.plan.files if file.size > 30_000)
    right = hub.repos[REPO][shard.name]
    hub.damaged = {shard.name}
    found = hashlib.sha256(right[:-1] + bytes([right[-1] ^ 1])).hexdigest()
    with pytest.raises(DownloadError, match=f"{shard.name}: expected checksum {shard.digest}, found {found}; .*again"):
        pull.run()
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "store.download").glob(f"{shard.name}*"))
    hub.damaged = set()
    assert pull.run().is_dir()


def test_a_small_file_with_a_wrong_git_checksum_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.damaged = {"config.json"}
    with pytest.raises(DownloadError, match=r"config\.json: expected checksum [0-9a-f]{40}, found"):
        Pull(connect(hub), tmp_path / "store")


def test_a_download_that_was_damaged_on_disk_is_fetched_again(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    pull = Pull(connect(hub), tmp_path / "store")
    pull.run(keep_download=True)
    shard = max(pull.download.iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(bytes(shard.stat().st_size))
    hub.requests = []
    store = Pull(connect(hub), tmp_path / "store", force=True).run()
    assert [name for name, _ in hub.fetched() if name.endswith(".safetensors")] == [shard.name]
    assert store_files(store) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))


def test_offline_the_cache_of_huggingface_hub_is_used_and_checked(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    for path in checkpoint.iterdir():
        hf_hub_download(REPO, path.name, endpoint=hub.url)
    assert Pull(connect(hub), tmp_path / "online").plan.present_bytes > 100_000  # nor is it fetched twice when online
    hub.requests = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pull = Pull(connect(hub), tmp_path / "store")
    assert pull.plan.present_bytes == pull.plan.download_bytes
    assert store_files(pull.run()) == store_files(convert(checkpoint, tmp_path / "direct", "q4_0"))
    assert hub.requests == []
    shard = max(pull.plan.files, key=lambda file: file.size)
    (blob,) = (tmp_path / "cache").glob(f"*/blobs/{shard.digest}")  # converting didn't take it away
    blob.write_bytes(bytes(shard.size))
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and the cache has no whole copy"):
        Pull(connect(hub), tmp_path / "other").run()


def test_offline_without_a_cache_is_one_error(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and revision 'main' is not in the cache; unset it"):
        Pull(connect(hub), tmp_path / "store")
    assert hub.requests == []
