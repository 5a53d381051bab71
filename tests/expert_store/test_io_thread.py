"""The I/O thread with a reader that waits for the test's word."""

from __future__ import annotations

import gc
import subprocess
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.io_thread import IoThread, ReadTicket


class GatedReader:
    """Writes the index into the buffer when the record's gate opens; odd `failing` indices raise."""

    name = "gated"
    bytes_read = 0

    def __init__(self, failing: frozenset[int] = frozenset()) -> None:
        self.started: SimpleQueue[int] = SimpleQueue()
        self.open = threading.Event()
        self.failing = failing

    def read_into(self, index: int, buffer: memoryview) -> None:
        self.started.put(index)
        self.open.wait()
        if index in self.failing:
            raise StoreReadError(f"store: byte {index}: bad disk")
        buffer[0] = index

    def close(self) -> None: ...


def buffer() -> memoryview:
    return memoryview(bytearray(8))


def test_reads_start_in_order_and_no_more_than_workers_at_once() -> None:
    reader = GatedReader()
    with IoThread(reader, workers=2) as io:
        tickets = [io.submit(i, buffer()) for i in range(5)]
        assert {reader.started.get(), reader.started.get()} == {0, 1}
        assert reader.started.empty()
        assert io.waiting == 3
        reader.open.set()
        for ticket in tickets:
            ticket.wait()
        assert [ticket.buffer[0] for ticket in tickets] == [0, 1, 2, 3, 4]
        counters = io.counters
        assert (counters.reads, counters.bytes, counters.errors) == (5, 40, 0)
        assert counters.busy_sec > 0


def test_a_queued_read_can_be_cancelled_and_a_running_one_cannot() -> None:
    reader = GatedReader()
    with IoThread(reader, workers=1) as io:
        done: SimpleQueue[ReadTicket] = SimpleQueue()
        running, queued = io.submit(1, buffer(), done), io.submit(2, buffer(), done)
        reader.started.get()
        assert not running.cancel()
        assert queued.cancel()
        assert not queued.cancel()
        assert done.get() is queued
        assert queued.done
        assert queued.cancelled
        with pytest.raises(CancelledError):
            queued.wait()
        assert not running.done
        reader.open.set()
        running.wait()
        assert done.get() is running
        assert not running.cancel()
        assert queued.buffer[0] == 0
        assert io.counters.cancelled == 1


def test_an_error_reaches_whoever_waits_and_the_next_read_goes_on() -> None:
    reader = GatedReader(failing=frozenset({1}))
    reader.open.set()
    with IoThread(reader, workers=1) as io:
        bad, good = io.submit(1, buffer()), io.submit(2, buffer())
        with pytest.raises(StoreReadError, match="byte 1: bad disk"):
            bad.wait()
        good.wait()
        assert io.counters.errors == 1


def test_any_of_several_reads_can_be_waited_for() -> None:
    reader = GatedReader(failing=frozenset({3}))
    reader.open.set()
    with IoThread(reader, workers=3) as io:
        done: SimpleQueue[ReadTicket] = SimpleQueue()
        for i in range(8):
            io.submit(i, buffer(), done)
        ended = {ticket.index: ticket.error for ticket in (done.get() for _ in range(8))}
        assert sorted(ended) == list(range(8))
        assert [i for i, error in ended.items() if error] == [3]


def test_a_full_queue_holds_the_submitter_until_there_is_room() -> None:
    reader = GatedReader()
    with IoThread(reader, workers=1, depth=1) as io:
        io.submit(0, buffer())
        reader.started.get()
        waiting = io.submit(1, buffer())
        late: list[ReadTicket] = []
        submitter = threading.Thread(target=lambda: late.append(io.submit(2, buffer())))
        submitter.start()
        assert waiting.cancel()  # makes room
        submitter.join()
        reader.open.set()
        late[0].wait()


def test_close_cancels_what_waits_finishes_what_runs_and_frees_blocked_submitters() -> None:
    reader = GatedReader()
    io = IoThread(reader, workers=1, depth=1)
    running = io.submit(0, buffer())
    reader.started.get()
    queued = io.submit(1, buffer())
    refusal: list[BaseException] = []

    def submit_when_full() -> None:
        try:
            io.submit(2, buffer()).wait()
        except (StoreReadError, CancelledError) as e:  # depends on which of the two comes first
            refusal.append(e)

    submitter = threading.Thread(target=submit_when_full)
    submitter.start()
    closer = threading.Thread(target=io.close)
    closer.start()
    with pytest.raises(CancelledError):
        queued.wait()
    reader.open.set()
    closer.join()
    submitter.join()
    assert running.done
    assert running.error is None
    assert len(refusal) == 1
    with pytest.raises(StoreReadError, match="closed"):
        io.submit(3, buffer())
    io.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("smallthinker-io")]


def test_a_wait_may_have_a_limit() -> None:
    reader = GatedReader()
    with IoThread(reader) as io:
        ticket = io.submit(7, buffer())
        with pytest.raises(TimeoutError, match="record 7"):
            ticket.wait(timeout_sec=0)
        reader.open.set()
        ticket.wait()


def test_a_forgotten_io_thread_ends_its_workers_and_keeps_no_buffer() -> None:
    reader = GatedReader()
    reader.open.set()
    io = IoThread(reader)
    threads = list(io._threads)
    data = bytearray(8)
    ticket = io.submit(1, memoryview(data))
    ticket.wait()
    forgotten = weakref.ref(ticket)
    del ticket, io
    gc.collect()
    for thread in threads:
        thread.join()
    assert forgotten() is None
    data.append(0)  # BufferError if anything still had a view of it


def test_a_process_that_dies_with_reads_under_way_ends(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = """
from smallthinker.expert_store.io_thread import IoThread
class Reader:
    def read_into(self, index, buffer): buffer[0] = 1
io = IoThread(Reader())
for i in range(50): io.submit(i, memoryview(bytearray(1)))
raise SystemExit(3)
"""
    assert run_python(script).returncode == 3


def test_workers_and_depth_below_one_are_refused() -> None:
    for workers, depth in [(0, 1), (1, 0)]:
        with pytest.raises(ValueError, match="at least 1"):
            IoThread(GatedReader(), workers, depth)


@settings(max_examples=50)
@given(
    workers=st.integers(1, 4),
    depth=st.integers(1, 6),
    reads=st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=40),
)
def test_every_ticket_ends_exactly_once(workers: int, depth: int, reads: list[tuple[int, bool]]) -> None:
    reader = GatedReader(failing=frozenset(range(0, 256, 7)))
    reader.open.set()
    done: SimpleQueue[ReadTicket] = SimpleQueue()
    with IoThread(reader, workers, depth) as io:
        tickets = []
        for index, cancel in reads:
            tickets.append(io.submit(index, buffer(), done))
            if cancel:
                tickets[-1].cancel()
        ended = [done.get() for _ in tickets]
        assert done.empty()
        counters = io.counters
    assert {id(ticket) for ticket in ended} == {id(ticket) for ticket in tickets}
    for ticket in tickets:
        assert ticket.done
        if not ticket.cancelled:
            assert (ticket.error is not None) == (ticket.index in reader.failing)
            assert ticket.error is not None or ticket.buffer[0] == ticket.index
    assert counters.reads + counters.cancelled == len(tickets)
