"""The kernel's throttle, against folders that look like cgroups; what the kernel does with them is a slow test."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from smallthinker.errors import ProfileError
from smallthinker.expert_store.device import real_throttle as module
from smallthinker.expert_store.device.real_throttle import allowed_bytes_per_sec, real_throttle
from smallthinker.expert_store.device.storage_profile import load_profile

EMMC = load_profile("emmc")


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of cgroups, and a disk of number 8:0 behind every path."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(module, "_CGROUPS", root)
    monkeypatch.setattr(module, "disk_of", lambda _: "8:0")
    monkeypatch.setattr(module, "_REMOVE_TRIES", 1)
    return root


def read(path: Path) -> str:
    return path.read_text()


def test_version_1_limits_the_disk_and_the_process_goes_home(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cgroups / "blkio"
    home.mkdir()
    monkeypatch.setattr(module, "_cgroups_of", lambda _: (True, home, home))
    with real_throttle(EMMC, "/anything", pid=77) as folder:
        assert folder.parent == home
        assert read(folder / "blkio.throttle.read_bps_device") == "8:0 250000000"
        assert read(folder / "blkio.throttle.read_iops_device") == "8:0 11000"
        assert read(folder / "cgroup.procs") == "77"
    assert read(home / "cgroup.procs") == "77"


def test_version_2_asks_for_the_controller_and_writes_both_limits(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cgroups / "user"
    home.mkdir()
    (cgroups / "cgroup.subtree_control").write_text("memory pids")
    monkeypatch.setattr(module, "_cgroups_of", lambda _: (False, cgroups, home))
    with real_throttle(replace(EMMC, random_iops=0.5 + 1), "/anything", pid=77) as folder:
        assert read(cgroups / "cgroup.subtree_control") == "+io"
        assert read(folder / "io.max") == "8:0 rbps=250000000 riops=1"
    assert read(home / "cgroup.procs") == "77"


def test_what_version_1_allows_is_told(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cgroups / "blkio"
    home.mkdir()
    monkeypatch.setattr(module, "_cgroups_of", lambda _: (True, home, home))
    assert allowed_bytes_per_sec("/anything") is None
    (home / "blkio.throttle.read_bps_device").write_text("8:16 1\n8:0 314572800\n")
    assert allowed_bytes_per_sec("/anything") == 314572800
    (home / "blkio.throttle.read_bps_device").write_text("8:16 1\n")
    assert allowed_bytes_per_sec("/anything") is None


def test_of_what_version_2_allows_the_least_on_the_way_up_is_told(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cgroups / "user" / "app"
    home.mkdir(parents=True)
    monkeypatch.setattr(module, "_cgroups_of", lambda _: (False, cgroups, home))
    assert allowed_bytes_per_sec("/anything") is None
    (home / "io.max").write_text("8:0 rbps=max wbps=5 riops=max wiops=max\n")
    assert allowed_bytes_per_sec("/anything") is None
    (home / "io.max").write_text("8:0 rbps=300 wbps=5 riops=max wiops=max\n")
    (home.parent / "io.max").write_text("8:16 rbps=7\n8:0 wbps=5 rbps=200\n")
    assert allowed_bytes_per_sec("/anything") == 200


def test_where_no_disk_is_behind_the_path_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Path) -> str:
        raise ProfileError("no disk")

    monkeypatch.setattr(module, "disk_of", none)
    assert allowed_bytes_per_sec("/anything") is None


def test_without_rights_or_cgroups_it_is_one_clear_error(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cgroups_of", lambda _: (True, cgroups / "not mounted", cgroups))
    with pytest.raises(ProfileError, match="use the emulated disk"), real_throttle(EMMC, "/anything"):
        pass


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="needs /proc")
def test_where_no_block_controller_is_mounted_it_says_so(cgroups: Path) -> None:
    with pytest.raises(ProfileError, match=r"no block controller|No such file"), real_throttle(EMMC, "/anything"):
        pass


def test_a_partition_is_throttled_as_its_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = tmp_path.stat().st_dev
    disk = tmp_path / "devices" / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1" / "dev").write_text("8:1\n")
    (disk / "sda1" / "partition").write_text("1\n")
    links = tmp_path / "block"
    links.mkdir()
    (links / f"{os.major(number)}:{os.minor(number)}").symlink_to(disk / "sda1")
    monkeypatch.setattr(module, "_BLOCK_DEVICES", links)
    monkeypatch.setattr(module, "_mounted_device", lambda _: number)
    assert module.disk_of(tmp_path) == "8:0"


def test_a_path_without_a_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no disk behind it"):
        module.disk_of(tmp_path / "nothing")
