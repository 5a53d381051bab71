"""Background reading: a bounded queue of records to read, a few worker threads, a ticket for each read.

Owns the order in which submitted reads start (first come, first served) and how their end is told. Knows nothing
about what the records are for, nor about memory: the caller owns every buffer until its ticket is done.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType

from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.readers import Reader


class ReadTicket:
    """One read. `buffer` belongs to the reader until `done`, and after that again to the caller."""

    def __init__(self, index: int, buffer: memoryview, completed: SimpleQueue[ReadTicket] | None) -> None:
        self.index = index
        self.buffer = buffer
        self.error: BaseException | None = None
        self._completed = completed
        self._finished = threading.Event()
        self._state: _State | None = None

    @property
    def done(self) -> bool:
        """Read, failed or cancelled: nothing touches the buffer any more."""
        return self._finished.is_set()

    @property
    def cancelled(self) -> bool:
        return isinstance(self.error, CancelledError)

    def wait(self, timeout_sec: float | None = None) -> None:
        """Block until done. Raises what the read raised (StoreReadError with path and offset), CancelledError,
        TimeoutError."""
        if not self._finished.wait(timeout_sec):
            raise TimeoutError(f"record {self.index}: not read within {timeout_sec} seconds")
        if self.error is not None:
            raise self.error

    def cancel(self) -> bool:
        """Withdraw a read that has not started. False: it is running or done; a running one must be waited for."""
        return self._state is not None and self._state.cancel(self)

    def _finish(self, error: BaseException | None) -> None:
        self.error = error
        self._finished.set()
        if self._completed is not None:
            self._completed.put(self)


@dataclass(frozen=True)
class IoCounters:
    """What the workers did since the start. busy_sec adds up over workers: it can exceed the wall clock."""

    reads: int
    bytes: int
    errors: int
    cancelled: int
    busy_sec: float


@dataclass
class _State:
    """What the workers share. They hold this and not the IoThread, so that a forgotten IoThread can be collected."""

    reader: Reader
    depth: int
    queue: deque[ReadTicket] = field(default_factory=deque)
    closing: bool = False
    running: int = 0
    reads: int = 0
    bytes: int = 0
    errors: int = 0
    cancels: int = 0
    busy_sec: float = 0.0

    def __post_init__(self) -> None:
        # Reentrant: the collector may run `stop` on a thread that is inside one of these methods.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.room = threading.Condition(self.lock)
        self.idle = threading.Condition(self.lock)

    def submit(self, ticket: ReadTicket) -> None:
        with self.lock:
            while len(self.queue) >= self.depth and not self.closing:
                self.room.wait()
            if self.closing:
                raise StoreReadError(f"record {ticket.index}: the I/O thread is closed")
            ticket._state = self
            self.queue.append(ticket)
            self.work.notify()

    def cancel(self, ticket: ReadTicket) -> bool:
        with self.lock:
            try:
                self.queue.remove(ticket)
            except ValueError:
                return False
            self.cancels += 1
            self.room.notify()
        ticket._finish(CancelledError(f"record {ticket.index}: read cancelled"))
        return True

    def drain(self) -> None:
        with self.lock:
            for ticket in list(self.queue):
                self.cancel(ticket)
            while self.running:
                self.idle.wait()

    def stop(self) -> None:
        with self.lock:
            self.closing = True
            waiting = list(self.queue)
            self.work.notify_all()
            self.room.notify_all()
        for ticket in waiting:
            self.cancel(ticket)

    def run(self) -> None:
        """A worker's life."""
        while True:
            with self.lock:
                while not self.queue and not self.closing:
                    self.work.wait()
                if not self.queue:
                    return
                ticket = self.queue.popleft()
                self.running += 1
                self.room.notify()
            error: BaseException | None = None
            start = time.perf_counter()
            try:
                self.reader.read_into(ticket.index, ticket.buffer)
            except BaseException as e:  # whatever it is, it belongs to the thread that waits for the ticket
                error = e
            seconds = time.perf_counter() - start
            with self.lock:
                self.running -= 1
                self.idle.notify_all()
                self.reads += 1
                self.busy_sec += seconds
                if error is None:
                    self.bytes += ticket.buffer.nbytes
                else:
                    self.errors += 1
            ticket._finish(error)
            del ticket, error  # an idle worker must not keep a buffer alive


class IoThread:
    """Reads records in the background. Context manager; the reader stays the caller's to close, after this.

    workers: reads in flight; two keep an NVMe or network disk busy where one waits (see docs/benchmarks.md).
    depth: reads that may wait; `submit` blocks when so many do.
    """

    def __init__(self, reader: Reader, workers: int = 2, depth: int = 256) -> None:
        if workers < 1 or depth < 1:
            raise ValueError(f"workers and depth: expected at least 1, found {workers} and {depth}")
        self._state = _State(reader, depth)
        self._threads = [
            threading.Thread(target=self._state.run, name=f"smallthinker-io-{i}", daemon=True) for i in range(workers)
        ]
        # Runs at close, at collection or at interpreter exit, whichever is first: a daemon thread that is still
        # reading when the interpreter frees its memory would write into it.
        self._stop = weakref.finalize(self, _stop_and_join, self._state, self._threads)
        for thread in self._threads:
            thread.start()

    def submit(self, index: int, buffer: memoryview, completed: SimpleQueue[ReadTicket] | None = None) -> ReadTicket:
        """Queue a read of record `index` into `buffer` (see Reader.read_into); blocks while `depth` reads wait.

        Every ticket is put into `completed` exactly once, when it is done (read, failed or cancelled): to wait for
        any of several reads, give them one queue and `get` from it. Raises StoreReadError after `close`.
        """
        ticket = ReadTicket(index, buffer, completed)
        self._state.submit(ticket)
        return ticket

    def drain(self) -> None:
        """Cancel what has not started and wait for what has: afterwards nothing writes into any buffer."""
        self._state.drain()

    @property
    def counters(self) -> IoCounters:
        state = self._state
        with state.lock:
            return IoCounters(state.reads, state.bytes, state.errors, state.cancels, state.busy_sec)

    @property
    def waiting(self) -> int:
        """Reads that have not started."""
        return len(self._state.queue)

    def close(self) -> None:
        """Cancel what has not started, wait for what has. Again, nothing happens."""
        self._stop()

    def __enter__(self) -> IoThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _stop_and_join(state: _State, threads: list[threading.Thread]) -> None:
    state.stop()
    for thread in threads:
        if thread is not threading.current_thread():  # the collector may run this on a worker
            thread.join()
