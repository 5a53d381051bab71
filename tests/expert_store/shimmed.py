"""Scripts whose reads go through shim.c, in a process of their own: for a disk that waits, fails or comes short."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GATED = ["direct", "buffered"]  # the map doesn't read through the C library; the order is the same code
HERE = Path(__file__).parent
CACHESTAT = 451  # the system call's number
PREAMBLE = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from reading import *
from smallthinker.errors import *
store = Store.open(sys.argv[1])
kind = sys.argv[2]
slots = make_slots(store, 12)
CHUNK, WHOLE = 4096, store.record_bytes
reading_end, gate = os.pipe()

@contextmanager
def shut():  # every read waits for a byte; opening, which reads too, comes before
    os.environ["SHIM_GATE"] = str(reading_end)
    try:
        yield
    except BaseException:
        let(10000)  # or closing the queue would wait for ever
        raise
    finally:
        del os.environ["SHIM_GATE"]

def let(chunks):
    os.write(gate, bytes(chunks))

def reading():  # threads that wait at the gate
    waiting = 0
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "syscall").read_text().split()
        waiting += fields[0] == "0" and int(fields[1], 16) == reading_end
    return waiting

def until(condition):
    while not condition():
        os.sched_yield()

def hear(queue, count):
    told = []
    while len(told) < count:
        told += queue.wait()
    return told
"""


def build_shim(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and a loader that preloads")
    library = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", str(HERE / "shim.c"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def run_behind(shim: Path, script: str, kind: str, store: Path, environment: dict[str, object]) -> None:
    """What the script asserts must hold. It finds `store` and `slots`, what `reading` has, and PREAMBLE's functions."""
    preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))  # after a sanitizer's runtime
    # without cachestat nothing counts as cached, so every byte is read by a call that the shim sees
    environment = {"SHIM_NO_SYSCALL": CACHESTAT, "LD_PRELOAD": preload} | environment
    env = os.environ | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-c", PREAMBLE + script, str(store), kind]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
