"""Measuring any disk: which file is read, what becomes of a temporary one, and what the points come down to."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device import cold_reads, probe_file
from smallthinker.expert_store.device.device_probe import (
    DEPTHS,
    KINDS,
    REQUESTS,
    Point,
    probe_device,
    profile_of_points,
)
from smallthinker.expert_store.device.probe_file import ProbeFile
from smallthinker.expert_store.device.probe_file import probe_file as open_probe_file
from smallthinker.expert_store.device.storage_profile import BUNDLED, load_profile, profile_toml

SMALL = 1 << 20


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test writes megabytes and not hundreds of them."""
    monkeypatch.setattr(probe_file, "LEAST_BYTES", SMALL)
    monkeypatch.setattr(probe_file, "PREFERRED_BYTES", 4 * SMALL)
    monkeypatch.setattr(probe_file, "TEMPORARY_BYTES", 2 * SMALL)


def write(path: Path, nbytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(0).bytes(nbytes))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # file systems that allocate late know only then how much of it is on the disk
    os.close(fd)
    return path


def test_a_large_file_below_the_folder_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "small", 2 * SMALL)
    large = write(tmp_path / "a" / "b" / "large", 5 * SMALL)
    with open_probe_file(tmp_path) as file:
        assert file == ProbeFile(large, large, 5 * SMALL, is_temporary=False)
        assert {path.name for path in tmp_path.iterdir()} == {"small", "a"}


def test_a_file_with_holes_is_no_measure(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(64 * SMALL)
    if (tmp_path / "holes").stat().st_blocks:
        pytest.skip("this file system fills holes")
    with open_probe_file(tmp_path) as found:
        assert found.is_temporary
    with pytest.raises(StoreReadError, match="holes"), open_probe_file(tmp_path / "holes"):
        pass


def test_a_temporary_file_is_gone_whatever_happens(tmp_path: Path) -> None:
    with open_probe_file(tmp_path) as file:
        assert file.is_temporary and file.note is None and file.file_bytes == 2 * SMALL
        assert file.path.stat().st_size == 2 * SMALL
        if file.path.is_relative_to("/proc"):
            assert list(tmp_path.iterdir()) == []  # even a kill leaves nothing
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), open_probe_file(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_on_a_nearly_full_disk_what_fits_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(1.5 * SMALL)))
    with open_probe_file(tmp_path) as file:
        assert SMALL <= file.file_bytes <= 1.5 * SMALL * 0.8 + 4096
        assert file.note is not None and "more was not free" in file.note
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SMALL // 2))
    with pytest.raises(StoreReadError, match="give a large file on this disk"), open_probe_file(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_others_fill_meanwhile_is_measured_with_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_file, "_BLOCK_BYTES", SMALL // 2)
    true_write, written = os.write, 0

    def write_until_full(fd: int, data: memoryview) -> int:
        nonlocal written
        if written >= 3 * SMALL // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += len(data)
        return true_write(fd, data)

    monkeypatch.setattr(os, "write", write_until_full)
    with open_probe_file(tmp_path) as file:
        assert file.file_bytes == file.path.stat().st_size == 3 * SMALL // 2
        assert file.note is not None


def test_on_a_read_only_disk_the_largest_file_is_read_or_a_remedy_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(probe_file.tempfile, "mkstemp", refuse)
    with pytest.raises(StoreReadError, match=r"Read-only file system.*give a large file"), open_probe_file(tmp_path):
        pass
    there = write(tmp_path / "there", 3 * SMALL // 2)
    with open_probe_file(tmp_path) as file:
        assert file.path == there and not file.is_temporary


@pytest.mark.parametrize(
    ("name", "expected"), [("nothing", "No such file"), ("small", "expected at least"), ("pipe", "a device")]
)
def test_what_cannot_be_measured_is_one_clear_error(tmp_path: Path, name: str, expected: str) -> None:
    write(tmp_path / "small", 100)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreReadError, match=expected) as raised, open_probe_file(tmp_path / name):
        pass
    assert "give a" in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_system_in_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_file, "file_system", lambda _: "tmpfs")
    with pytest.raises(StoreReadError, match="in memory"), open_probe_file(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_probe_finds_points_and_a_profile_and_leaves_no_page_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "large", 32 * SMALL)
    seen: list[tuple[int, int, str]] = []
    try:
        report = probe_device(
            ProbeFile(path, path, 32 * SMALL, False), seconds=0.5, progress=lambda *at: seen.append(at)
        )
    except StoreReadError as e:
        if "in memory for good" in str(e):
            pytest.skip("this file system keeps its pages")
        raise
    assert {point.kind for point in report.points} <= set(KINDS)
    assert any(point.request_bytes == REQUESTS[0] and point.depth == 1 for point in report.points)
    assert report.profile.scope == "device" and str(tmp_path) not in profile_toml(report.profile)
    assert seen[-1][0] == seen[-1][1] == 3 * len(REQUESTS) * len(DEPTHS) * len(KINDS)
    with path.open("rb") as file:
        assert host.cached_pages(file.fileno(), 0, 32 * SMALL) in (0, None)


def test_a_file_that_stays_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "large", SMALL)
    monkeypatch.setattr(host, "cached_pages", lambda *at: 1)
    with pytest.raises(StoreReadError, match="in memory for good; give another file"):
        probe_device(ProbeFile(path, path, SMALL, False), seconds=0.1)


def test_a_file_that_was_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path / "large", SMALL)
    with pytest.raises(StoreReadError, match=r"large.*it changed since opening"):
        probe_device(ProbeFile(path, path, 2 * SMALL, False), seconds=0.1)


def test_without_direct_reads_the_page_cache_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "large", 8 * SMALL)
    true_queue = cold_reads.NativeQueue

    def refuse(source: object, slots: object, kind: str, **settings: int) -> object:
        if kind == "direct":
            raise StoreReadError("no direct reads here")
        return true_queue(source, slots, kind, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(cold_reads, "NativeQueue", refuse)
    try:
        report = probe_device(ProbeFile(path, path, 8 * SMALL, False), seconds=0.3)
    except StoreReadError as e:
        if "in memory for good" in str(e):
            pytest.skip("this file system keeps its pages")
        raise
    assert {point.kind for point in report.points} == {"buffered"}
    assert "buffered reads" in report.profile.source


@given(st.sampled_from(BUNDLED))
def test_the_points_of_a_known_device_come_down_to_its_figures(name: str) -> None:
    device = load_profile(name)
    points = [
        Point("direct", nbytes, depth, (device.bytes_per_sec(nbytes, depth),))
        for nbytes in REQUESTS
        for depth in DEPTHS
    ]
    latency = device.latency_sec + REQUESTS[0] / device.random_bytes_per_sec
    found = profile_of_points(points, "found", latency, device.sequential_bytes_per_sec, "a test")
    for point in points:
        predicted = found.bytes_per_sec(point.request_bytes, point.depth)
        assert predicted == pytest.approx(point.bytes_per_sec, rel=0.06)
