"""System calls: limits of memory cgroups, peak memory, aligned memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.expert_store import host


@given(st.integers(1, 1 << 20))
def test_buffers_are_aligned_zeroed_and_whole_pages(nbytes: int) -> None:
    buffer = memoryview(host.aligned_buffer(nbytes))
    assert host.address(buffer) % 4096 == 0
    assert nbytes <= len(buffer) < nbytes + 4096
    assert not any(buffer[:64])


def test_a_file_is_cached_when_all_of_the_range_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        file.read()
        if not host.is_cached(file.fileno(), 0, 1 << 20):
            pytest.skip("this system doesn't say what its page cache holds")
        assert not host.is_cached(file.fileno(), 0, (1 << 20) + 4096)
        host.drop_file_cache(file.fileno(), 0, 0)
        if host.is_cached(file.fileno(), 0, 1 << 20):
            pytest.skip("this file system keeps its pages")
        assert not host.is_cached(file.fileno(), 4096, 4096)
    assert not host.is_cached(-1, 0, 4096)


def write_group(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text + "\n")
    return path


V2 = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 300\ninactive_file 250\nactive_file 1"}
V1 = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700", "memory.stat": "total_inactive_file 250"}


@pytest.mark.parametrize(("files", "v2"), [(V2, True), (V1, False)])
def test_a_cgroup_has_its_limit_less_what_cannot_be_reclaimed(tmp_path: Path, files: dict[str, str], v2: bool) -> None:
    assert host.memory_of_cgroup(write_group(tmp_path, files), v2) == (1000, 450, 550)
    assert host.memory_of_cgroup(tmp_path / "none", v2) is None
    assert host.memory_of_cgroup(write_group(tmp_path / "max", V2 | {"memory.max": "max"}), True) is None


@pytest.mark.parametrize(
    ("line", "folders", "v2"),
    [
        ("0::/a/b", ["a/b", "a", "."], True),
        ("4:memory:/a/b", ["memory/a/b", "memory/a", "memory"], False),
        ("4:memory:/not/in/this/container", ["memory"], False),
    ],
)
def test_every_enclosing_cgroup_counts(tmp_path: Path, line: str, folders: list[str], v2: bool) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    found = host._memory_cgroups(f"9:pids:/\n{line}\n", tmp_path)
    assert found == [(tmp_path / folder, v2) for folder in folders]


def test_the_least_limit_of_the_enclosing_cgroups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [(write_group(tmp_path / limit, {"memory.max": limit}), True) for limit in ("max", "5000", "3000", "4000")]
    monkeypatch.setattr(host, "_memory_cgroups", lambda *_: groups)
    assert host.memory_limit_bytes() == 3000
    monkeypatch.setattr(host, "_memory_cgroups", lambda *_: groups[:1])
    assert host.memory_limit_bytes() is None
    unlimited = write_group(tmp_path / "v1", {"memory.limit_in_bytes": "9223372036854771712"})
    monkeypatch.setattr(host, "_memory_cgroups", lambda *_: [(unlimited, False)])
    assert host.memory_limit_bytes() is None


def test_available_memory_cores_and_peak_are_plausible() -> None:
    assert 1 << 20 < host.available_memory_bytes() < 1 << 50
    assert 1 <= host.physical_cores() < 4096
    assert host.cpu_name()
    assert 1 << 20 < host.peak_memory_bytes() < 1 << 50


def test_peak_memory_counts_what_was_freed_and_not_what_the_parent_had(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    large = np.ones(300 << 20, np.uint8)
    script = """
from smallthinker.expert_store import host
before = host.peak_memory_bytes()
b"x" * (100 << 20)
print(before, host.peak_memory_bytes() - before)
"""
    before, growth = map(int, run_python(script).stdout.split())
    assert before < large.nbytes
    assert growth > 90 << 20


def test_a_folder_lock_is_held_once(tmp_path: Path) -> None:
    first = host.lock_folder(tmp_path, wait=False)
    assert first is not None
    assert host.lock_folder(tmp_path, wait=False) is None
    host.unlock_folder(first)
    second = host.lock_folder(tmp_path, wait=False)
    assert second is not None
    host.unlock_folder(second)
