"""System calls: limits of memory cgroups, peak memory, aligned memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import host
from smallthinker.host import memory as host_memory


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
V1 = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700", "memory.stat": "total_inactive_file 251"}


@pytest.mark.parametrize(("files", "v2"), [(V2, True), (V1, False)])
def test_a_cgroup_has_its_limit_less_what_cannot_be_reclaimed(tmp_path: Path, files: dict[str, str], v2: bool) -> None:
    assert host.memory_of_cgroup(write_group(tmp_path, files), v2) == (1000, 449, 551)
    assert host.memory_of_cgroup(tmp_path / "none", v2) is None
    assert host.memory_of_cgroup(write_group(tmp_path / "max", V2 | {"memory.max": "max"}), True) is None


STATS = {
    True: ("anon shmem kernel unevictable", "active_file inactive_file slab_reclaimable", "file_dirty file_writeback"),
    False: ("rss shmem unevictable", "active_file inactive_file", "dirty writeback"),
}


@given(st.data(), st.booleans())
def test_what_the_kernel_gives_back_at_once_is_available_and_nothing_else(data: st.DataObject, v2: bool) -> None:
    """Written as the kernel does: an own part and, in version 1, that of the groups inside, in other lines."""
    sizes = st.integers(0, 1 << 40)
    kept, clean, busy = ({name: data.draw(sizes) for name in names.split()} for names in STATS[v2])
    files = sum(clean.values())
    for name in busy:
        busy[name] = min(busy[name], files // 2)
    lines = {name: value if v2 else data.draw(sizes) for name, value in (kept | clean | busy).items()}
    if v2:
        files = clean["active_file"] + clean["inactive_file"]
        lines |= {name: min(value, files // 2) for name, value in busy.items()}
    else:
        lines |= {f"total_{name}": value for name, value in (kept | clean | busy).items()}
    dirty = sum(lines[name if v2 else f"total_{name}"] for name in busy)
    usage, limit = sum(kept.values()) + sum(clean.values()), data.draw(st.integers(1, 1 << 43))
    names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    order = data.draw(st.permutations([f"{name} {value}" for name, value in lines.items()]))
    with tempfile.TemporaryDirectory() as folder:
        text = {names[0]: str(limit), names[1]: str(usage), "memory.stat": "\n".join(order)}
        memory = host.memory_of_cgroup(write_group(Path(folder), text), v2)
    assert memory is not None
    assert memory.used_bytes == sum(kept.values()) + dirty
    assert memory.available_bytes == max(limit - memory.used_bytes, 0)


@pytest.mark.parametrize(
    ("files", "v2", "limit"),
    [
        (V2 | {"memory.high": "800"}, True, 800),
        (V2 | {"memory.max": "max", "memory.high": "800"}, True, 800),
        (V2 | {"memory.high": "max"}, True, 1000),
        (V1 | {"memory.stat": "hierarchical_memory_limit 900"}, False, 900),
        (V1 | {"memory.stat": "hierarchical_memory_limit 9223372036854771712\n\nodd line here"}, False, 1000),
    ],
)
def test_a_limit_is_wherever_the_kernel_begins_to_hold_a_group_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], v2: bool, limit: int
) -> None:
    group = write_group(tmp_path, files)
    memory = host.memory_of_cgroup(group, v2)
    assert memory is not None and memory.total_bytes == limit
    monkeypatch.setattr(host_memory, "_memory_cgroups", lambda *_: [(group, v2)])
    assert host.memory_limit_bytes() == limit


def test_pages_of_files_are_resident_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    before = host.held_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        resident = host.resident_bytes()
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert host.resident_bytes() - resident > 48 << 20
        if sys.platform == "linux":
            assert host.held_bytes() - before < 16 << 20


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
    found = host_memory._memory_cgroups(f"9:pids:/\n{line}\n", tmp_path)
    assert found == [(tmp_path / folder, v2) for folder in folders]


def test_the_least_limit_of_the_enclosing_cgroups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [(write_group(tmp_path / limit, {"memory.max": limit}), True) for limit in ("max", "5000", "3000", "4000")]
    monkeypatch.setattr(host_memory, "_memory_cgroups", lambda *_: groups)
    assert host.memory_limit_bytes() == 3000
    monkeypatch.setattr(host_memory, "_memory_cgroups", lambda *_: groups[:1])
    assert host.memory_limit_bytes() is None
    unlimited = write_group(tmp_path / "v1", {"memory.limit_in_bytes": "9223372036854771712"})
    monkeypatch.setattr(host_memory, "_memory_cgroups", lambda *_: [(unlimited, False)])
    assert host.memory_limit_bytes() is None


times = st.floats(0, 1e6)


@given(times, times, times, st.floats(1e-3, 1e3))
def test_what_others_took_of_the_processors_is_what_this_process_did_not(
    before: float, others: float, own: float, seconds: float
) -> None:
    first = host.CpuSeconds(before, before, before)
    last = host.CpuSeconds(before + seconds, before + others + own, before + own)
    assert host.cores_of_others(first, last) == pytest.approx(others / (last.clock - first.clock), rel=1e-3, abs=1e-3)
    assert host.cores_of_others(first, first) == 0


def test_the_processors_have_worked_at_least_as_long_as_this_process() -> None:
    first, last = host.cpu_seconds(), host.cpu_seconds()
    assert first.clock <= last.clock and first.own <= last.own and first.all <= last.all + 1
    assert last.all > 0 and last.own > 0


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
from smallthinker import host
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


def test_a_busy_machine_is_told_of_and_a_quiet_one_is_not() -> None:
    said = host.busy_note(1.234)
    assert said is not None and "1.2 of its processors" in said
    assert host.busy_note(0.1) is None
