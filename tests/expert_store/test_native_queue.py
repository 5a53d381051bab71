"""What only native reading has: chunks that give way, ways of reading that a kernel may lack, memory that must fit.

Where a test needs a disk that waits, fails or comes short, it runs in a process of its own behind shim.c.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_config
from reading import NATIVE, make_slots, needs_proc, opened_keeper

from smallthinker import _storage
from smallthinker.errors import StoreReadError
from smallthinker.expert_store import host
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synth import synth

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


@pytest.fixture(scope="module")
def store(records_store: Path) -> Store:
    return Store.open(records_store)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and a loader that preloads")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", str(HERE / "shim.c"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


@pytest.fixture
def behind_shim(shim: Path, records_store: Path) -> Callable[..., None]:
    """Run a script whose reads go through shim.c; what it asserts must hold."""

    def run(script: str, kind: str = "buffered", *, path: Path = records_store, **environment: object) -> None:
        preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))  # after a sanitizer's runtime
        # without cachestat nothing counts as cached, so every byte is read by a call that the shim sees
        environment = {"SHIM_NO_SYSCALL": CACHESTAT, "LD_PRELOAD": preload} | environment
        env = os.environ | {name: str(value) for name, value in environment.items()}
        command = [sys.executable, "-c", PREAMBLE + script, str(path), kind]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert result.returncode == 0, result.stderr

    return run


GATED = ["direct", "buffered"]  # the map and the ring don't read through the C library; the order is the same code


@pytest.mark.parametrize("kind", GATED)
def test_certain_reads_overtake_speculative_ones_even_half_way(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, depth=1) as queue, shut():
    queue.submit(1, 0, speculative=True)
    until(lambda: reading() == 1)  # its first chunk of three
    for slot, record in enumerate((2, 3, 4), 1):
        queue.submit(record, slot, speculative=True)
    queue.submit(5, 4)
    queue.submit(6, 5)
    queue.promote(4)
    let(1 + 3)
    assert hear(queue, 1) == [(5, None)]
    queue.promote(99)
    let(100)
    assert [record for record, _ in hear(queue, 5)] == [6, 4, 1, 2, 3]
    for slot, record in enumerate((1, 2, 3, 4, 5, 6)):
        assert slots[slot].tobytes() == record_bytes(store, record)
    counters = queue.counters()
    assert (counters.certain_reads, counters.speculative_reads) == (3, 3), counters
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_a_read_under_way_stops_at_its_next_chunk_when_cancelled(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, depth=1) as queue, shut():
    queue.submit(1, 0)
    until(lambda: reading() == 1)
    queue.submit(2, 1)
    assert queue.cancel(2)  # not started: gone without a word
    assert not queue.cancel(2)
    assert not queue.cancel(1)
    assert not queue.cancel(1)
    let(1)
    (record, error), = queue.wait()
    assert record == 1 and isinstance(error, CancelledError), error
    assert queue.counters().withdrawn_bytes == CHUNK
    # one that gave way half-way has nothing in flight, so it ends at once
    queue.submit(3, 0, speculative=True)
    until(lambda: reading() == 1)
    queue.submit(4, 1)
    let(1)
    until(lambda: queue.counters().busy_sec and reading() == 1)
    assert not queue.cancel(3)
    until(lambda: (told := queue.poll()) and told[0].record == 3 and isinstance(told[0].error, CancelledError))
    let(3)
    assert queue.wait() == [(4, None)]
# the only chunk is under way: the record comes whole
with opened_keeper(kind, store, slots, chunk_bytes=WHOLE, depth=1) as queue, shut():
    queue.submit(5, 0)
    until(lambda: reading() == 1)
    assert not queue.cancel(5)
    let(1)
    assert queue.wait() == [(5, None)]
    assert queue.counters().withdrawn_bytes == 0
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_no_more_chunks_are_in_flight_than_allowed(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, chunk_bytes=1 << 20, depth=4, speculative=2) as queue, shut():
    for record in range(3):
        queue.submit(record, record, speculative=True)
    until(lambda: reading() == 2)
    for record in range(3, 6):
        queue.submit(record, record)
    until(lambda: reading() == 4)
    assert queue.cancel(2) and queue.cancel(5)  # those that there was no room for
    let(1)
    told = hear(queue, 1)
    assert reading() <= 3
    let(3)
    told += hear(queue, 3)
    assert sorted(told) == [(record, None) for record in (0, 1, 3, 4)]
    # promotion makes room where speculation had none left
    for record in range(6, 9):
        queue.submit(record, record, speculative=True)
    until(lambda: reading() == 2)
    queue.promote(8)
    until(lambda: reading() == 3)
    let(3)
    assert sorted(hear(queue, 3)) == [(6, None), (7, None), (8, None)]
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_closing_waits_for_the_chunk_under_way_and_for_no_more(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
queue = open_keeper(kind, store, slots, depth=1)
with shut():
    for record in range(5):
        queue.submit(record, record)
    until(lambda: reading() == 1)
    closer = threading.Thread(target=queue.close)
    closer.start()
    while True:  # closing has begun once nothing is taken any more
        try:
            queue.submit(9, 9)
        except StoreReadError:
            break
        except ValueError:
            pass
    assert closer.is_alive()
    let(1)  # a second chunk would wait for ever
    closer.join()
assert queue.counters().withdrawn_bytes == CHUNK
""",
        kind,
    )


def test_ctrl_c_ends_a_wait_and_loses_no_read(behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
main = Path(f"/proc/self/task/{os.getpid()}/stat")
def interrupt():
    until(lambda: all(main.read_text().rsplit(")")[1].split()[0] == "S" for _ in range(50)))
    os.kill(os.getpid(), signal.SIGINT)
with opened_keeper(kind, store, slots, depth=1) as queue, shut():
    queue.submit(1, 0)
    threading.Thread(target=interrupt).start()
    try:
        queue.wait()
        raise SystemExit("not interrupted")
    except KeyboardInterrupt:
        pass
    let(3)
    assert queue.wait() == [(1, None)]
"""
    )


@pytest.mark.parametrize("kind", GATED)
def test_a_process_that_ends_with_reads_under_way_ends(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
queue = open_keeper(kind, store, slots, depth=2)
for record in range(12):
    queue.submit(record, record)
queue.itself = queue  # only the collector, or the end, comes for it
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_short_and_interrupted_reads_are_continued(kind: str, behind_shim: Callable[..., None]) -> None:
    script = """
with opened_keeper(kind, store, slots, chunk_bytes=1 << 20) as queue:
    for record in range(12):
        queue.submit(record, record)
    assert all(error is None for _, error in hear(queue, 12))
    for record in range(12):
        assert slots[record].tobytes() == record_bytes(store, record)
"""
    behind_shim(script, kind, SHIM_SHORT=4096 if kind == "direct" else 5000, SHIM_EINTR=1)  # 5000: in mid-block


@pytest.mark.parametrize("kind", GATED)
def test_a_broken_block_is_an_error_with_its_byte_and_costs_no_other_record(
    kind: str, store: Store, behind_shim: Callable[..., None]
) -> None:
    broken = store.record_offset(3) + 4096
    behind_shim(
        f"""
with opened_keeper(kind, store, slots, depth=3) as queue:
    for record in range(6):
        queue.submit(record, record)
    told = dict(hear(queue, 6))
    error = told.pop(3)
    assert isinstance(error, StoreReadError)
    assert str(error) == (
        f"{{store.experts_file.path}}: byte {broken}: cannot read: Input/output error; "
        "check the disk, copy or convert the store again"
    ), error
    assert all(error is None for error in told.values())
    assert queue.counters().certain_reads == 5
""",
        kind,
        SHIM_EIO=broken,
    )


def test_a_kernel_that_refuses_a_ring_says_so_in_one_line(behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
try:
    NativeQueue(store, slots, "uring", chunk_bytes=4096, depth=2)
    raise SystemExit("no error")
except StoreReadError as e:
    assert "this system refuses io_uring (Operation not permitted); use the direct reader" in str(e), e
""",
        SHIM_NO_SYSCALL=425,
    )


@pytest.mark.parametrize("kind", [*NATIVE])
def test_older_kernels_read_the_same_bytes(kind: str, behind_shim: Callable[..., None]) -> None:
    script = """
with opened_keeper(kind, store, slots) as queue:
    for record in range(12):
        queue.submit(record, record)
    assert all(error is None for _, error in hear(queue, 12))
    for record in range(12):
        assert slots[record].tobytes() == record_bytes(store, record)
"""
    behind_shim(script, kind, SHIM_NO_SYSCALL=CACHESTAT, SHIM_NO_POPULATE=1)


@pytest.mark.parametrize("kind", NATIVE)
def test_a_file_that_changed_since_the_store_was_opened_is_refused(kind: str, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    size = store.experts_file.file_bytes
    os.truncate(store.experts_file.path, size - 4096)
    with pytest.raises(StoreReadError, match=rf"expected a file of {size} bytes, found {size - 4096}: it changed"):
        NativeQueue(store, make_slots(store, 1), kind, chunk_bytes=4096, depth=1)  # type: ignore[arg-type]
    store.experts_file.path.unlink()
    with pytest.raises(StoreReadError, match=r"experts\.safetensors: cannot open: No such file"):
        NativeQueue(store, make_slots(store, 1), kind, chunk_bytes=4096, depth=1)  # type: ignore[arg-type]


def fitting(store: Store) -> dict[str, Any]:
    return {
        "file_bytes": store.experts_file.file_bytes,
        "first_offset": store.record_offset(0),
        "record_bytes": store.record_bytes,
        "num_records": store.num_experts,
        "slots": make_slots(store, 2),
        "kind": "buffered",
        "chunk_bytes": 4096,
        "depth": 2,
        "speculative_depth": 1,
    }


def test_slots_that_records_do_not_fit_are_refused(store: Store) -> None:
    good = make_slots(store, 3)
    memory = np.frombuffer(host.aligned_buffer(3 * store.record_bytes), np.uint8)
    read_only = good.view()
    read_only.flags.writeable = False
    for slots, message in (
        (good.view(np.int8), "expected a C-contiguous uint8 array of two dimensions"),
        (good.view(np.uint32), "expected a C-contiguous uint8 array of two dimensions"),
        (good.reshape(-1), "expected a C-contiguous uint8 array of two dimensions"),
        (good[::2], "expected a C-contiguous uint8 array of two dimensions"),
        (good[:, :4096], "expected a C-contiguous uint8 array of two dimensions"),
        (memory[: 2 * 4096].reshape(2, 4096), f"expected rows of {store.record_bytes} bytes, found 4096"),
        (read_only, "expected memory that can be written"),
        (memory[64 : 64 + store.record_bytes].reshape(1, -1), "aligned to 4096 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"slots": slots})
    with pytest.raises(TypeError):
        _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"slots": [[0]]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"record_bytes": 0}, {"record_bytes": 12289}, {"record_bytes": 1 << 40}, {"record_bytes": -4096},
        {"first_offset": -4096}, {"first_offset": 100}, {"first_offset": 1 << 62}, {"num_records": 0},
        {"num_records": 1 << 60}, {"num_records": 49}, {"file_bytes": 0}, {"file_bytes": -1}, {"chunk_bytes": 0},
        {"chunk_bytes": 5000}, {"chunk_bytes": 1 << 40}, {"depth": 0}, {"depth": 65}, {"depth": -1},
        {"speculative_depth": 0}, {"speculative_depth": 3}, {"kind": "tape"}, {"kind": ""},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_contradict_each_other_are_refused(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected|file_bytes: expected"):
        _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | wrong)


def test_the_slots_live_as_long_as_the_queue(store: Store) -> None:
    slots = make_slots(store, 4)
    gone = weakref.ref(slots)
    queue = NativeQueue(store, slots, "buffered", chunk_bytes=4096, depth=2)
    del slots
    for slot in range(4):
        queue.submit(slot, slot)
    assert gone() is not None
    queue.close()
    del queue
    assert gone() is None


@needs_proc
def test_a_queue_that_could_not_be_opened_leaves_nothing_behind(store: Store) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for kind in NATIVE:
        for wrong in ({"file_bytes": store.experts_file.file_bytes + 1}, {"depth": 0}):
            with pytest.raises((_storage.ReadError, ValueError)):
                _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"kind": kind} | wrong)
    assert held() == before


def test_a_queue_says_what_it_reads_with(store: Store) -> None:
    for kind in NATIVE:
        with opened_keeper(kind, store, make_slots(store, 1)) as queue:
            assert queue.name == kind


@pytest.mark.parametrize("kind", NATIVE)
def test_reading_leaves_no_page_in_the_cache_that_was_not_there(kind: str, tmp_path: Path) -> None:
    """Some of it is there, and with it the mark of a read-ahead, behind which an ordinary read goes on."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config(hidden_size=256, moe_ffn_hidden_size=512).to_dict()))
    with Store.open(synth(str(config), tmp_path / "store", "q8_0")) as store:
        fd = host.open_buffered(store.experts_file.path)
        try:
            host.drop_file_cache(fd, 0, 0)
            with store.experts_file.path.open("rb", buffering=0) as file:
                file.seek(store.record_offset(0))
                file.read(store.record_bytes)
            before = cached_records(fd, store)
            if not 0 < len(before) < store.num_experts:
                pytest.skip("this system can't tell what its page cache holds, or doesn't let go of it")
            slots = make_slots(store, 2)
            with opened_keeper(kind, store, slots, chunk_bytes=host.DIRECT_ALIGN * 16) as queue:
                for record in range(store.num_experts):
                    queue.submit(record, record % 2)
                    queue.wait()
            assert cached_records(fd, store) <= before
        finally:
            os.close(fd)


def cached_records(fd: int, store: Store) -> set[int]:
    """Of which records the page cache holds anything, as far as it can be told."""
    pages = range(0, store.record_bytes, host.DIRECT_ALIGN)
    return {
        record
        for record in range(store.num_experts)
        if any(host.is_cached(fd, store.record_offset(record) + at, 1) for at in pages)
    }
