"""A model on a disk that fails (faulty_disk.py) at any read: the very same answer, or one line."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_files import rounded_checkpoint, write_gguf
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

pytestmark = pytest.mark.slow
ASK = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], sys.argv[2].encode()))"
TRIES = 8  # moments a fault, model and reader
Started = Callable[..., "subprocess.Popen[str]"]


class Disk:
    def __init__(self, folder: Path, mounted: Path, control: Path) -> None:
        self.folder, self.mounted, self.control = folder, mounted, control
        self.server: subprocess.Popen[bytes] | None = None

    def plug_in(self, fault: str, read: int = 1) -> None:
        """A new disk for each fault: what the page cache has of the last one is gone with it."""
        self.pull_out()
        self.control.write_text(f"{fault} {read}")
        self.control.with_suffix(".count").write_text("0")
        server = Path(__file__).with_name("faulty_disk.py")
        self.server = subprocess.Popen([sys.executable, server, self.folder, self.mounted, self.control])
        while not self.mounted.is_mount():
            assert self.server.poll() is None, "FUSE can't be had"
            time.sleep(0.01)

    def pull_out(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            subprocess.run(["umount", "-l", self.mounted], check=True)
            self.server = None

    def reads(self) -> int:
        return int(self.control.with_suffix(".count").read_text() or 0)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    pytest.importorskip("mfusepy")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and FUSE")
    folder = tmp_path_factory.mktemp("faulty")
    made = make_store(tiny_config(**HYBRID_ATTENTION), folder / "made", "q4_0")[0]
    (folder / "disk").mkdir()
    shutil.move(made, folder / "disk" / "store")
    make_store(tiny_config(), folder / "gguf")
    rounded_checkpoint(folder / "gguf" / "checkpoint", "Q4_0")
    write_gguf(folder / "gguf" / "checkpoint", folder / "disk" / "tiny.gguf", "Q4_0")
    (folder / "mounted").mkdir()
    found = Disk(folder / "disk", folder / "mounted", folder / "control")
    yield found
    found.pull_out()


@pytest.fixture
def start(disk: Disk, tmp_path: Path) -> Started:
    def started(model: str, reader: str, place: Path | None = None) -> subprocess.Popen[str]:
        words = f"run -m {(place or disk.mounted) / model} --max-tokens 8 --temperature 0 --raw --reader {reader} hello"
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "smallthinker", *words.split()]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )

    return started


@pytest.mark.parametrize("reader", ["direct", "mmap", "buffered"])
@pytest.mark.parametrize("model", ["store", "tiny.gguf"])
def test_a_disk_that_fails_at_any_read_ends_in_the_same_answer_or_in_a_line(
    model: str, reader: str, disk: Disk, start: Started
) -> None:
    right, _ = start(model, reader, disk.folder).communicate()
    assert right
    disk.plug_in("none")
    assert start(model, reader).communicate()[0] == right
    moments = random.Random(0).sample(range(1, disk.reads() + 1), min(TRIES, disk.reads()))
    codes = []
    for fault in ("once", "stalled", "broken", "pulled"):
        for read in moments:
            disk.plug_in(fault, read)
            process = start(model, reader)
            out, err = process.communicate()
            codes.append(process.returncode)
            case = (fault, read, process.returncode, out, err)
            if process.returncode == 0:
                assert out == right, case
            else:
                assert process.returncode == 2, case
                assert fault != "stalled", case
                assert "error: " in err.splitlines()[-1], case
                assert "Traceback" not in err, case
    assert set(codes) == {0, 2}
    print(f"{model}, {reader}: {len(codes)} faults, {codes.count(0)} answered, {codes.count(2)} refused in a line")


@pytest.mark.parametrize("reader", ["direct", "mmap", "buffered"])
def test_ctrl_c_at_a_disk_that_is_stuck_ends_the_command_when_the_disk_is_back(
    reader: str, disk: Disk, start: Started
) -> None:
    disk.plug_in("none")
    start("store", reader).communicate()
    codes, reads = set(), disk.reads()
    for read in (reads - 3, reads - 1, reads):  # the last may be one for a guess, which nobody waits for
        disk.plug_in("stuck", read)
        process = start("store", reader)
        while disk.reads() < read:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        disk.control.write_text("none 1")
        process.communicate()
        codes.add(process.returncode)
    assert 130 in codes
    assert codes <= {0, 130}


@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_ctrl_c_again_and_again_ends_what_waits_for_a_disk_that_never_answers(
    command: str, disk: Disk, start: Started, tmp_path: Path
) -> None:
    """By the buffered reader: a direct read that FUSE has begun is given back to nobody, not even for `kill -9`."""
    disk.plug_in("none")
    start("store", "buffered").communicate()
    disk.plug_in("stuck", read := disk.reads() - 3)
    words = [command, "-m", str(disk.mounted / "store"), "--reader", "buffered"]
    words += ["--port", "0", "--json"] if command == "serve" else ["--max-tokens", "8"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-m", "smallthinker", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asking = None
        if command == "serve":
            url = json.loads(process.stdout.readline())["url"]
            data = json.dumps({"prompt": "hello", "max_tokens": 8})
            asking = subprocess.Popen([sys.executable, "-c", ASK, f"{url}/v1/completions", data])
        else:
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            if command == "run":
                process.stdin.close()
        while disk.reads() < read:
            time.sleep(0.05)
        presses = 0
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            presses += 1
            time.sleep(0.5)  # a second one within the same moment is the first one still
        if asking is not None:
            asking.wait()
    print(f"{command}: ended by Ctrl-C number {presses}, {process.returncode}")
    assert presses <= 8
    assert process.returncode in (-signal.SIGINT, 130, 0)
    assert disk.control.read_text() == f"stuck {read}"
