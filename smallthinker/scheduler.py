"""Who computes next: the one thread that owns an engine, a fair queue before it, and what each answer has to be told.

Requests come from any thread or event loop and are served in the order in which they came.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from smallthinker.engine import Engine
from smallthinker.errors import CancelledError, QueueFullError, RequestError
from smallthinker.expert_store import host
from smallthinker.generation import Answer, FinishReason, GenerationParams, LogitsProcessor
from smallthinker.request import Request

MOST_WAITING = 64
# Before any answer has been written, what a client that finds the queue full is told to wait.
_FIRST_GUESS_SEC = 1.0


@dataclass(frozen=True)
class SchedulerStats:
    """What runs now, and totals since the start. Sizes in bytes.

    finished: answers by finish reason, and 'error'. hit_rate: of all experts asked for. kv_bytes of kv_planned_bytes
    are taken by conversations, running and kept.
    """

    running: int
    waiting: int
    most_waiting: int
    finished: Mapping[str, int]
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    kv_bytes: int
    kv_planned_bytes: int
    memory_bytes: int
    memory_budget_bytes: int
    hit_rate: float
    bytes_read: int
    slots: int
    num_experts: int
    uptime_sec: float


@dataclass
class _Entry:
    """A request with its answer."""

    request: Request
    answer: Answer
    on_prefill: Callable[[int, int], None] | None


@dataclass
class _Totals:
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    answer_sec: float = 0.0  # from the first token computed to the end, of all answers


class Scheduler:
    """`submit` requests; a daemon thread computes them until `close`, which leaves the engine open."""

    def __init__(self, engine: Engine, *, max_waiting: int = MOST_WAITING) -> None:
        """max_waiting: requests that may wait beside those that run. Raises RequestError."""
        if max_waiting < 1:
            raise RequestError(f"max_waiting: expected 1 or more, found {max_waiting}")
        self._engine, self._most_waiting = engine, max_waiting
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._running: list[_Entry] = []
        self._ids = itertools.count(1)
        self._totals = _Totals()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams,
        *,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        timeout_sec: float | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Request:
        """Queue a request; returns at once.

        logits_processor: see LogitsProcessor; called on the thread that computes, for which every answer waits.
        logprobs: report each token's, and those of so many of the likeliest. timeout_sec: from now, waiting included.
        on_prefill: told (tokens done, tokens of the prompt) as the prompt is computed, on the thread that computes.

        Raises QueueFullError, and ContextLengthError and RequestError for what can never be computed.
        """
        if timeout_sec is not None and not timeout_sec > 0:
            raise RequestError(f"timeout_sec: expected a number above 0, found {timeout_sec}")
        answer = Answer(self._engine, prompt_ids, params, logits_processor=logits_processor, logprobs=logprobs)
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        with self._changed:
            if self._closed:
                raise RequestError("this model is closed")
            if len(self._waiting) >= self._most_waiting:
                retry = self._retry_after_sec()
                raise QueueFullError(
                    f"queue: {len(self._waiting)} requests are waiting, which is as many as may; "
                    f"try again in {retry:.0f} s",
                    retry,
                )
            request = Request(next(self._ids), deadline, self._wake)
            self._waiting.append(_Entry(request, answer, on_prefill))
            self._start()
            self._changed.notify_all()
        return request

    def cancel_all(self) -> None:
        """Cancel everything that runs or waits."""
        with self._changed:
            entries = [*self._running, *self._waiting]
        for entry in entries:
            entry.request.cancel()

    def stats(self) -> SchedulerStats:
        """From any thread."""
        engine, plan, totals = self._engine, self._engine.plan, self._totals
        counters = engine.experts.counters()
        with self._changed:
            return SchedulerStats(
                running=len(self._running),
                waiting=len(self._waiting),
                most_waiting=self._most_waiting,
                finished=dict(totals.finished),
                prompt_tokens=totals.prompt_tokens,
                reused_tokens=totals.reused_tokens,
                new_tokens=totals.new_tokens,
                kv_bytes=engine.kv_bytes,
                kv_planned_bytes=plan.kv_bytes,
                memory_bytes=host.resident_bytes(),
                memory_budget_bytes=plan.budget_bytes,
                hit_rate=counters.hit_rate,
                bytes_read=counters.bytes_read,
                slots=engine.experts.limit,
                num_experts=plan.num_experts,
                uptime_sec=time.monotonic() - self._began,
            )

    def close(self) -> None:
        """End every answer, with reason 'cancelled', and the thread. May be called twice, from any other thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        self.cancel_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="smallthinker", daemon=True)
            self._thread.start()
            # a daemon thread that is stopped in the middle of a kernel would take the process down with it
            closing = weakref.WeakMethod(self.close)
            atexit.register(lambda: (close := closing()) and close())

    def _retry_after_sec(self) -> float:
        """How long until one of those that run will have ended, as the answers so far suggest."""
        done = sum(self._totals.finished.values())
        return max(1.0, self._totals.answer_sec / done if done else _FIRST_GUESS_SEC)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                entry = self._waiting.popleft()
                self._running.append(entry)
            try:
                self._answer(entry)
            except BaseException as error:  # whatever it is, the one who waits has to be told
                self._end(entry, "error")
                entry.request.fail(error)

    def _answer(self, entry: _Entry) -> None:
        request, answer, engine = entry.request, entry.answer, self._engine
        request.state = "running"
        answer.begin()
        with contextlib.suppress(CancelledError):
            logits, _ = engine.prefill(answer.prompt, cancelled=lambda: request.ending is not None)
            while True:
                token = answer.push(logits)
                if token is not None:
                    request.put(token)
                if answer.reason or request.ending:
                    break
                logits = engine.decode(answer.ids[-1], cancelled=lambda: request.ending is not None)
        finished = answer.finish(request.ending)
        self._end(entry, finished.completion.finish_reason)
        request.put(finished)

    def _end(self, entry: _Entry, reason: FinishReason | str) -> None:
        with self._changed:
            self._running.remove(entry)
            self._totals.finished[reason] += 1
