"""Reading by Python threads, with a reader that waits for the test's word."""

from __future__ import annotations

import gc
import subprocess
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.read_queue import Finished
from smallthinker.expert_store.threaded_queue import ThreadedQueue


class GatedReader:
    """Writes the record's number into its slot once `let` has given leave; `failing` ones raise."""

    name = "gated"

    def __init__(self, failing: dict[int, BaseException] | None = None) -> None:
        self.started: SimpleQueue[int] = SimpleQueue()
        self.leave = threading.Semaphore(0)
        self.failing = failing or {}
        self.closed = 0

    def let(self, reads: int) -> None:
        self.leave.release(reads)

    def read_into(self, index: int, buffer: memoryview) -> None:
        self.started.put(index)
        self.leave.acquire()
        if index in self.failing:
            raise self.failing[index]
        buffer[0] = index

    def close(self) -> None:
        self.closed += 1


def make_slots(count: int = 16) -> npt.NDArray[np.uint8]:
    return np.frombuffer(host.aligned_buffer(count * 4096), np.uint8).reshape(count, 4096)


def hear(queue: ThreadedQueue, count: int) -> list[Finished]:
    told: list[Finished] = []
    while len(told) < count:
        told += queue.wait()
    return told


@pytest.fixture
def reader() -> GatedReader:
    return GatedReader()


def test_certain_reads_overtake_speculative_ones(reader: GatedReader) -> None:
    queue = ThreadedQueue(reader, make_slots(), 16, workers=1)
    for record in range(4):
        queue.submit(record, record, speculative=True)
    assert reader.started.get() == 0
    queue.submit(8, 8)
    queue.submit(9, 9)
    queue.promote(2)
    queue.promote(0)  # under way, and certain from now on
    queue.promote(15)
    reader.let(16)
    assert [record for record, _ in hear(queue, 6)] == [0, 8, 9, 2, 1, 3]
    counters = queue.counters()
    assert (counters.certain_reads, counters.speculative_reads) == (4, 2)
    queue.close()


def test_speculation_leaves_workers_free_for_certain_reads(reader: GatedReader) -> None:
    queue = ThreadedQueue(reader, make_slots(), 16, workers=3, speculative_workers=1)
    for record in range(3):
        queue.submit(record, record, speculative=True)
    assert reader.started.get() == 0
    queue.submit(8, 8)
    queue.submit(9, 9)
    assert {reader.started.get(), reader.started.get()} == {8, 9}
    assert reader.started.empty()
    assert queue.cancel(1)
    reader.let(16)
    assert sorted(hear(queue, 4)) == [(0, None), (2, None), (8, None), (9, None)]
    queue.close()


def test_a_read_that_has_not_started_can_be_cancelled_and_another_comes_whole(reader: GatedReader) -> None:
    slots = make_slots()
    queue = ThreadedQueue(reader, slots, 16, workers=1)
    queue.submit(1, 1)
    queue.submit(2, 2)
    reader.started.get()
    assert not queue.cancel(1)
    assert queue.cancel(2)
    assert not queue.cancel(2)
    reader.let(2)
    assert queue.wait() == [(1, None)]
    assert (slots[1, 0], slots[2, 0]) == (1, 0)
    queue.close()


def test_whatever_a_reader_raises_reaches_who_waits_and_the_next_read_goes_on() -> None:
    own = StoreReadError("store: byte 1: bad disk")
    foreign = RuntimeError("no such luck")
    reader = GatedReader({1: own, 2: foreign})
    reader.let(3)
    queue = ThreadedQueue(reader, make_slots(), 16, workers=1)
    for record in (1, 2, 3):
        queue.submit(record, record)
    told = dict(hear(queue, 3))
    assert told[1] is own
    assert isinstance(told[2], StoreReadError)
    assert told[2].__cause__ is foreign
    assert "record 2: cannot read: RuntimeError('no such luck')" in str(told[2])
    assert told[3] is None
    assert queue.counters().certain_reads == 1
    queue.close()


def test_a_drain_waits_for_what_runs_and_forgets_the_rest(reader: GatedReader) -> None:
    queue = ThreadedQueue(reader, make_slots(), 16, workers=2)
    for record in range(8):
        queue.submit(record, record)
    assert {reader.started.get(), reader.started.get()} == {0, 1}
    drainer = threading.Thread(target=queue.drain)
    drainer.start()
    reader.let(2)  # a third read would wait for ever
    drainer.join()
    assert queue.poll() == []
    assert queue.counters().withdrawn_bytes == 2 * 4096
    queue.submit(0, 0)
    reader.let(1)
    assert queue.wait() == [(0, None)]
    queue.close()


def test_close_ends_the_workers_and_closes_the_reader_once(reader: GatedReader) -> None:
    queue = ThreadedQueue(reader, make_slots(), 16, workers=2)
    queue.submit(0, 0)
    reader.let(1)
    queue.wait()
    queue.close()
    queue.close()
    assert reader.closed == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("smallthinker-io")]


def test_a_forgotten_queue_ends_its_workers_and_keeps_no_memory(reader: GatedReader) -> None:
    slots = make_slots()
    gone = weakref.ref(slots)
    queue = ThreadedQueue(reader, slots, 16)
    queue.submit(1, 1)
    reader.let(1)
    queue.wait()
    del queue, slots
    gc.collect()
    assert gone() is None
    assert reader.closed == 1


def test_a_process_that_dies_with_reads_under_way_ends(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = """
import numpy as np
from smallthinker import host
from smallthinker.expert_store.threaded_queue import ThreadedQueue
class Reader:
    def read_into(self, index, buffer): buffer[0] = 1
    def close(self): pass
slots = np.frombuffer(host.aligned_buffer(50 * 4096), np.uint8).reshape(50, 4096)
queue = ThreadedQueue(Reader(), slots, 50)
for i in range(50): queue.submit(i, i)
raise SystemExit(3)
"""
    assert run_python(script).returncode == 3


def test_unfit_slots_and_numbers_of_workers_are_refused(reader: GatedReader) -> None:
    good = make_slots()
    read_only = good.view()
    read_only.flags.writeable = False
    for slots, message in (
        (good.view(np.int8), "uint8 array of two dimensions"),
        (good[:, :64], "uint8 array of two dimensions"),
        (read_only, "can be written"),
        (good.reshape(-1)[64 : 64 + 4096].reshape(1, 4096), "aligned to 4096"),
    ):
        with pytest.raises(ValueError, match=message):
            ThreadedQueue(reader, slots, 16)  # type: ignore[arg-type]
    for workers, speculative in ((0, 1), (1, 0), (1, 2)):
        with pytest.raises(ValueError, match="workers: expected"):
            ThreadedQueue(reader, good, 16, workers, speculative)
