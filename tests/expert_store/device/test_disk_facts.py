"""What lies behind a path: the right mount, and facts that agree with the system's own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from smallthinker import host
from smallthinker.expert_store.device import disk_facts as module
from smallthinker.expert_store.device.disk_facts import disk_facts, mount_of

MOUNTS = """\
22 1 253:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:40 / /home rw - overlay overlay rw,lowerdir=/a
24 22 8:1 / /home/jane\\040doe ro,noatime shared:1 master:2 - ext4 /dev/sda1 ro
25 22 0:50 / /mnt/share rw - nfs4 server:/export rw
26 22 8:2 / /mnt/share rw - xfs /dev/sda2 rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ("ext4", "253:0", "rw,relatime")),
        ("/homes/x", ("ext4", "253:0", "rw,relatime")),
        ("/home/x", ("overlay", "0:40", "rw")),
        ("/home/jane doe", ("ext4", "8:1", "ro,noatime")),
        ("/home/jane doe/store", ("ext4", "8:1", "ro,noatime")),
        ("/mnt/share/x", ("xfs", "8:2", "rw")),  # mounted over the share
    ],
)
def test_a_path_lies_on_the_longest_mount_above_it(path: str, expected: tuple[str, str, str]) -> None:
    assert mount_of(path, MOUNTS) == expected


def test_no_mounts_are_no_mount() -> None:
    assert mount_of("/x", "") is None


def test_facts_agree_with_the_system(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    found = disk_facts(tmp_path / "link")
    assert found.path == str(tmp_path.resolve())
    assert found.total_bytes == shutil.disk_usage(tmp_path).total
    assert found.is_writable and not found.is_read_only
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]  # what was tried left nothing
    if sys.platform == "linux":
        assert found.file_system in Path("/proc/filesystems").read_text().split() or "." in str(found.file_system)


def test_a_file_is_tried_itself_and_nothing_is_made_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(host.DIRECT_ALIGN))
    opened: list[Path] = []
    real = host.open_direct
    monkeypatch.setattr(host, "open_direct", lambda path: (opened.append(path), real(path))[1])
    assert disk_facts(file).direct_reads in (True, False)
    assert disk_facts(tmp_path, file).direct_reads in (True, False)
    assert opened == [file, file]


def test_direct_reads_that_the_file_system_refuses_are_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "open_direct", lambda path: None)
    assert disk_facts(tmp_path).direct_reads is False


def test_a_full_or_read_only_disk_leaves_direct_reads_untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "NamedTemporaryFile", refuse)
    assert disk_facts(tmp_path).direct_reads is None


def test_a_path_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_facts(tmp_path / "nowhere")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no proc")
def test_what_is_no_disk_has_no_device() -> None:
    found = disk_facts(Path("/proc/self"))
    assert (found.device, found.is_rotational, found.file_system) == (None, None, "proc")
    assert found.path == f"/proc/{os.getpid()}"
