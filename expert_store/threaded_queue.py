"""The contract of background reading, kept by Python threads for any Reader: where a record is more than its bytes in
the file, say compressed.

Owns the order in which reads start and how their end is told. Knows nothing about what the records are for.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.read_queue import Finished, ReadCounters
from smallthinker.expert_store.readers import Reader
from smallthinker.forks import Home


@dataclass(eq=False)
class _Read:
    record: int
    slot: int
    speculative: bool
    error: StoreReadError | None = None
    over: bool = False


@dataclass
class _State:
    """What the workers share. They hold this and not the queue, so that a forgotten queue can be collected."""

    reader: Reader
    slots: npt.NDArray[np.uint8]
    speculative_workers: int
    certain: deque[_Read] = field(default_factory=deque)
    speculative: deque[_Read] = field(default_factory=deque)
    reads: dict[int, _Read] = field(default_factory=dict)  # by record, from `submit` until told
    by_slot: dict[int, _Read] = field(default_factory=dict)
    ended: list[_Read] = field(default_factory=list)
    counters: ReadCounters = field(default_factory=ReadCounters)
    running: int = 0
    busy_from: float = 0.0
    home: Home = field(default_factory=Home)
    forgetting: bool = False  # what runs now will be told to nobody
    closing: bool = False

    def __post_init__(self) -> None:
        # Reentrant: the collector may run `stop` on a thread that is inside one of these methods.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.news = threading.Condition(self.lock)

    def next_read(self) -> _Read | None:
        if self.certain:
            return self.certain.popleft()
        if self.speculative and self.running < self.speculative_workers:
            return self.speculative.popleft()
        return None

    def run(self) -> None:
        """A worker's life."""
        while True:
            with self.lock:
                while (read := self.next_read()) is None and not self.closing:
                    self.work.wait()
                if read is None:
                    return
                if self.running == 0:
                    self.busy_from = time.perf_counter()
                self.running += 1
            error = self.read(read)
            with self.lock:
                self.running -= 1
                if self.running == 0:
                    self.count(busy_sec=time.perf_counter() - self.busy_from)
                self.end(read, error)
                self.work.notify()  # a speculative one may have waited for this worker
            del read, error  # an idle worker must not keep memory alive

    def read(self, read: _Read) -> StoreReadError | None:
        try:
            self.reader.read_into(read.record, self.slots[read.slot].data)
        except StoreReadError as e:
            return e
        except BaseException as e:  # whatever it is, it belongs to the thread that waits for the record
            error = StoreReadError(f"record {read.record}: cannot read: {e!r}")
            error.__cause__ = e
            return error
        return None

    def end(self, read: _Read, error: StoreReadError | None) -> None:
        read.error, read.over = error, True
        if self.forgetting:
            self.forget(read)
        else:
            self.ended.append(read)
        self.news.notify_all()

    def forget(self, read: _Read) -> None:
        del self.reads[read.record], self.by_slot[read.slot]
        if read.over and read.error is None:
            self.count(withdrawn_bytes=self.slots.shape[1])

    def count(self, **more: float) -> None:
        self.counters = replace(self.counters, **{name: getattr(self.counters, name) + n for name, n in more.items()})

    def tell(self) -> list[Finished]:
        with self.lock:
            ended, self.ended = self.ended, []
            for read in ended:
                del self.reads[read.record], self.by_slot[read.slot]
                if read.error is None:
                    kind = "speculative" if read.speculative else "certain"
                    self.count(**{f"{kind}_reads": 1, f"{kind}_bytes": self.slots.shape[1]})
            return [Finished(read.record, read.error) for read in ended]

    def drain(self) -> None:
        with self.lock:
            for read in (*self.certain, *self.speculative, *self.ended):
                self.forget(read)
            self.certain.clear()
            self.speculative.clear()
            self.ended.clear()
            self.forgetting = True
            self.news.notify_all()
            while self.running:
                self.news.wait()
            self.forgetting = False

    def stop(self) -> None:
        with self.lock:
            self.closing = True
            self.work.notify_all()
        self.drain()


class ThreadedQueue:
    """A ReadQueue over any Reader, which it closes at the end. A record under way is always read whole.

    reader, slots (uint8 [slots, record_bytes], aligned to 4096 bytes), num_records: what is read, and into what.
    workers: reads under way at once; speculative_workers: as long as only speculative ones wait.
    """

    def __init__(
        self,
        reader: Reader,
        slots: npt.NDArray[np.uint8],
        num_records: int,
        workers: int = 2,
        speculative_workers: int = 1,
    ) -> None:
        if not 1 <= speculative_workers <= workers:
            raise ValueError(
                f"workers: expected at least 1, and as many as speculative ones; found {workers}, {speculative_workers}"
            )
        _check_slots(slots)
        self._num_records, self._num_slots = num_records, len(slots)
        self._state = _State(reader, slots, speculative_workers)
        self._threads = [
            threading.Thread(target=self._state.run, name=f"smallthinker-io-{i}", daemon=True) for i in range(workers)
        ]
        # Runs at close, at collection or at interpreter exit, whichever is first: a daemon thread that is still
        # reading when the interpreter frees its memory would write into it.
        self._stop = weakref.finalize(self, _stop_and_join, self._state, self._threads)
        for thread in self._threads:
            thread.start()

    @property
    def name(self) -> str:
        return self._state.reader.name

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        state = self._here()
        for what, index, count in (("record", record, self._num_records), ("slot", slot, self._num_slots)):
            if not 0 <= index < count:
                raise IndexError(f"{what} {index}: expected 0 to {count - 1}")
        with state.lock:
            if state.closing:
                raise StoreReadError(f"record {record}: the queue is closed")
            if record in state.reads:
                raise ValueError(f"record {record} is under way already")
            if slot in state.by_slot:
                raise ValueError(f"slot {slot}: record {state.by_slot[slot].record} is being read into it")
            read = _Read(record, slot, speculative)
            state.reads[record] = state.by_slot[slot] = read
            (state.speculative if speculative else state.certain).append(read)
            state.work.notify()

    def promote(self, record: int) -> None:
        state = self._here()
        with state.lock:
            read = state.reads.get(record)
            if read is None or not read.speculative or read.over:
                return
            read.speculative = False
            if read in state.speculative:
                state.speculative.remove(read)
                state.certain.append(read)
                state.work.notify()

    def cancel(self, record: int) -> bool:
        state = self._here()
        with state.lock:
            read = state.reads.get(record)
            for waiting in (state.certain, state.speculative):
                if read is not None and read in waiting:
                    waiting.remove(read)
                    state.forget(read)
                    return True
        return False

    def poll(self) -> list[Finished]:
        state = self._here()
        return state.tell() if state.ended else []

    def wait(self) -> list[Finished]:
        state = self._here()
        with state.lock:
            while not state.ended:
                if not state.reads or state.forgetting:
                    raise ValueError("wait: no read is under way")
                state.news.wait()
            return state.tell()

    def drain(self) -> None:
        self._here().drain()

    def counters(self) -> ReadCounters:
        state = self._here()
        with state.lock:
            so_far = time.perf_counter() - state.busy_from if state.running else 0.0
            return replace(state.counters, busy_sec=state.counters.busy_sec + so_far)

    def close(self) -> None:
        self._stop()

    def _here(self) -> _State:
        self._state.home.check()
        return self._state


def _check_slots(slots: npt.NDArray[np.uint8]) -> None:
    if slots.dtype != np.uint8 or slots.ndim != 2 or not slots.flags.c_contiguous:
        raise ValueError("slots: expected a C-contiguous uint8 array of two dimensions")
    if not slots.flags.writeable:
        raise ValueError("slots: expected memory that can be written")
    if slots.ctypes.data % host.DIRECT_ALIGN:
        raise ValueError(f"slots: expected memory aligned to {host.DIRECT_ALIGN} bytes (host.aligned_buffer)")


def _stop_and_join(state: _State, threads: list[threading.Thread]) -> None:
    if not state.home.is_here:  # nobody is there to be stopped, and the reader's files are the other process's, too
        return
    state.stop()
    for thread in threads:
        if thread is not threading.current_thread() and thread.ident is not None:  # the collector may run this anywhere
            thread.join()
    state.slots = state.slots[:0].copy()  # not kept any longer
    state.reader.close()
