"""Who computes next: the one thread that owns an engine, a fair queue before it, and what each answer has to be told.

Requests come from any thread or event loop; those who ask take turns, see `turns`.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.arguments import callback, number, whole
from smallthinker.cache.conversations import Conversation, shared_prefix
from smallthinker.engine import Engine
from smallthinker.errors import CancelledError, QueueFullError, RequestError
from smallthinker.forks import Home, StaysHere
from smallthinker.forward import ignore
from smallthinker.generation.answer import Answer, GenerationParams, LogitsProcessor
from smallthinker.generation.embedding import Embedding, Pooling
from smallthinker.generation.request import Request
from smallthinker.generation.speculation.proposer import Proposer, proposer_of
from smallthinker.generation.stats import SchedulerStats, Totals
from smallthinker.generation.turns import Place, Turns, crowded_out
from smallthinker.options import MAX_WAITING
from smallthinker.text.chat_prompt import AnswerFormat

# While answers are being written, so much of a prompt is computed in a step with them: they get a token every second or
# so instead of every few. Smaller pieces would read experts more often.
_SHARED_PROMPT_TOKENS = 128
# So many tokens of a prompt that another prompt begins with, too, are worth waiting for: a step of the others.
_SHARED_WORTH_WAITING = 32
# Before any answer has been written, what a client that finds the queue full is told to wait.
_FIRST_GUESS_SEC = 1.0


@dataclass(eq=False)
class _Entry:
    """A request with its answer and, once it runs, its conversation."""

    request: Request
    answer: Answer
    on_prefill: Callable[[int, int], None] | None
    place: Place
    conversation: Conversation | None = None
    began: float = 0.0
    told: int = 0  # of the prompt's tokens
    fault: Exception | None = None  # of on_prefill

    def tell(self, done: int) -> None:
        """Whoever waits for the prompt, if that is news: of these tokens, or of a share of the layers of more."""
        if self.on_prefill is None or self.fault is not None or self.answer.ids or done <= self.told:
            return
        self.told = done
        try:
            self.on_prefill(done, len(self.answer.prompt))
        except Exception as error:  # the other answers of the step go on
            self.fault = error

    @property
    def opened(self) -> Conversation:
        assert self.conversation is not None
        return self.conversation

    @property
    def pending(self) -> Sequence[int]:
        """Tokens to be computed next: what is left of the prompt, or the token that was sampled last."""
        done, prompt = len(self.opened.tokens), self.answer.prompt
        return prompt[done:] if done < len(prompt) else self.answer.ids[done - len(prompt) :]


class Scheduler(StaysHere):
    """`submit` requests; a daemon thread computes them until `close`.

    In a process that was forked from this one, `close` does nothing and everything else raises ForkedError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = MAX_WAITING,
        at_end: Callable[[], None] = lambda: None,
        proposer: Proposer | None = None,
    ) -> None:
        """max_waiting: requests that may wait beside those that run. at_end: the last that the thread does; the engine
        stays open unless that closes it. proposer: instead of the one that the engine's options ask for. Raises
        RequestError."""
        self._proposer = proposer_of(engine.options) if proposer is None else proposer
        self._is_plain = False  # the next step proposes nothing
        self._engine, self._most_waiting = engine, whole("max_waiting", max_waiting, 1)
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []
        self._turns = Turns()
        self._running: list[_Entry] = []
        self._work: list[tuple[Callable[[], None], Future[None]]] = []
        self._ids = itertools.count(1)
        self._totals = Totals()
        self._closed = False
        self.home = Home()
        self._began = time.monotonic()
        self._at_end = at_end
        self._thread = threading.Thread(target=self._run, name="smallthinker", daemon=True)
        self._thread.start()
        # a daemon thread that is stopped in the middle of a kernel would take the process down with it
        closing = weakref.WeakMethod(self.close)
        self._at_exit = lambda: (close := closing()) and close()
        atexit.register(self._at_exit)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams,
        *,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        timeout_sec: float | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        client: Hashable = None,
        batch: Hashable = None,
        chat: AnswerFormat | None = None,
        pooling: Pooling | None = None,
    ) -> Request:
        """Queue a request; returns at once.

        logits_processor: see LogitsProcessor; called on the thread that computes, for which every answer waits.
        logprobs: report each token's, and those of so many of the likeliest. timeout_sec: from now, waiting included.
        on_prefill: told (tokens done, tokens of the prompt) as the prompt is computed, on the thread that computes;
        half of the layers of ten tokens are five.
        client, batch: whose it is, and what it was asked for with; see `turns`. Where the queue is full of one client's
        requests, its last makes room for another's, and fails with QueueFullError. chat: how a chat's answer is read,
        see `text.chat_prompt`; None for text that is only continued. pooling: nothing is written, the
        completion has the prompt's embedding.

        Raises QueueFullError, ForkedError, and ContextLengthError and RequestError for what can never be computed.
        """
        self.home.check()
        if timeout_sec is not None:
            timeout_sec = number("timeout_sec", timeout_sec, lambda sec: sec > 0, "a number above 0, or None")
        callback("on_prefill", on_prefill)
        if pooling is not None:
            answer: Answer = Embedding(self._engine, prompt_ids, pooling)
        else:
            answer = Answer(
                self._engine, prompt_ids, params, logits_processor=logits_processor, logprobs=logprobs, chat=chat
            )
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        with self._changed:
            if self._closed:
                raise RequestError("this model is closed")
            self._make_room(client)
            request = Request(next(self._ids), deadline)
            self._waiting.append(_Entry(request, answer, on_prefill, self._turns.arrive(client, batch)))
            self._changed.notify_all()
        return request

    def _make_room(self, client: Hashable) -> None:
        waiting = [entry for entry in self._waiting if not entry.request.ending]  # the others are as good as gone
        if len(waiting) < self._most_waiting:
            return
        retry = self._retry_after_sec()
        full = QueueFullError(
            f"queue: {len(waiting)} requests are waiting, which is as many as may; try again in {retry:.0f} s", retry
        )
        out = crowded_out(waiting, client)
        if out is None:
            raise full
        self._waiting.remove(out)
        self._totals.finished["error"] += 1
        out.request.fail(full)

    def between_steps(self, work: Callable[[], None]) -> None:
        """Let the thread that computes do this while no step is computed, and wait for it. Raises what it raises, and
        RequestError where that thread is the caller's."""
        self.home.check()
        if self._thread is threading.current_thread():
            raise RequestError("expected another thread, found the one that computes, in a callback or a processor")
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                raise RequestError("this model is closed")
            self._work.append((work, done))
            self._changed.notify_all()
        done.result()

    def cancel_all(self) -> None:
        """Cancel everything that runs or waits."""
        self.home.check()
        with self._changed:
            entries = [*self._running, *self._waiting]
        for entry in entries:
            entry.request.cancel()

    def stats(self) -> SchedulerStats:
        """From any thread."""
        self.home.check()
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
                speculation=replace(totals.speculation),
            )

    @property
    def closed(self) -> bool:
        """Nothing is computed any more: by `close`, because the thread has died, or in a forked process."""
        return self._closed or not self.home.is_here

    def close(self, wait_sec: float | None = None) -> None:
        """End every answer, with reason 'cancelled', and the thread. May be called again and again, from any threads.

        Returns when the thread has ended or `wait_sec` are over; from a callback or a logits processor, for which the
        thread waits itself, at once.
        """
        if not self.home.is_here:
            return
        with self._changed:
            self._closed = True
            for entry in (*self._running, *self._waiting):
                entry.request.cancel()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(wait_sec)
        atexit.unregister(self._at_exit)

    def _retry_after_sec(self) -> float:
        """How long until one of those that run will have ended, as the answers so far suggest."""
        done = sum(self._totals.finished.values())
        mean = self._totals.answer_sec / done if done else _FIRST_GUESS_SEC
        return max(1.0, mean / self._engine.plan.sequences)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # never expected; nobody must wait for ever
            with self._changed:
                self._closed = True
                entries = [*self._running, *self._waiting]
            for entry in entries:
                entry.request.fail(error)
            raise
        finally:
            with self._changed:
                self._closed = True
                left, self._work = self._work, []
            for _, done in left:
                done.set_exception(RequestError("this model is closed"))
            self._at_end()

    def _serve(self) -> None:
        while self._take_waiting():
            self._work_between_steps()
            self._answer()

    def _work_between_steps(self) -> None:
        with self._changed:
            taken, self._work = self._work, []
        for work, done in taken:
            try:
                work()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take_waiting(self) -> bool:
        """Wait for something to do. False: there will be nothing any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._work or self._closed)
            if (self._closed and not self._waiting and not self._running) or not self.home.is_here:
                return False
            ended = [entry for entry in self._waiting if entry.request.ending]
            for entry in ended:
                self._waiting.remove(entry)
            self._running += ended
            while self._waiting and len(self._running) - len(ended) < self._engine.plan.sequences:
                entry = self._turns.next(self._waiting)
                self._waiting.remove(entry)
                self._running.append(entry)
            return True

    def _answer(self) -> None:
        # apart from the loop, so that a thread with nothing to do keeps no request alive, nor what its callbacks know
        for entry in list(self._running):
            if entry.request.ending:
                self._finish(entry)
        if self._running:
            self._step()

    def _begins(self, entry: _Entry) -> bool:
        """Open its conversation, as late as that: what others have computed of its prompt by now is copied. False where
        it waits for such a part, which is being computed for another, and where it has failed."""
        if not isinstance(entry.answer, Embedding):
            for other in self._running:
                if other.conversation is None or other.answer.ids:
                    continue
                shared, read = shared_prefix(other.answer.prompt, entry.answer.prompt[:-1]), len(other.answer.prompt)
                is_news = shared - len(other.opened.tokens) >= _SHARED_WORTH_WAITING
                if is_news and other.opened.state.shape.can_continue(shared, read):
                    return False
        try:
            self._begin(entry)
        except Exception as error:
            self._fail(entry, error)
            return False
        return True

    def _begin(self, entry: _Entry) -> None:
        entry.request.state, entry.began = "running", time.monotonic()
        entry.conversation, reused = self._engine.open(entry.answer.prompt, anew=isinstance(entry.answer, Embedding))
        entry.answer.begin(reused)
        self._totals.prompt_tokens += len(entry.answer.prompt)
        self._totals.reused_tokens += reused

    def _step(self) -> None:
        """One step of the engine: a token of each answer that is being written, and as much of the prompts."""
        entries, began = self._running, time.perf_counter()
        # only an answer that is written alone: several share their steps already
        alone = entries[0] if len(entries) == 1 and entries[0].answer.ids and self._proposer else None
        if alone is not None and (proposed := self._propose(alone)):
            self._verify(alone, proposed, began)
            return
        prompts = [entry for entry in entries if not entry.answer.ids]
        room = self._engine.plan.chunk
        if len(prompts) < len(entries):
            room = max(min(room, _SHARED_PROMPT_TOKENS) - (len(entries) - len(prompts)), 1)
        spans: list[tuple[_Entry, Sequence[int]]] = []
        for entry in list(entries):
            if entry.conversation is None and not (room and self._begins(entry)):
                continue
            tokens = entry.pending
            if not entry.answer.ids:
                tokens = tokens[:room]
                room -= len(tokens)
            if tokens:
                spans.append((entry, tokens))
        if not spans:  # whatever was to begin has failed
            return
        reading = [entry.request for entry, _ in spans if not entry.answer.ids]

        def cancelled() -> bool:
            # a token that others lose with it is computed again in the next step; a chunk of a prompt takes a second
            if reading:
                return any(request.ending for request in reading)
            return all(entry.request.ending for entry, _ in spans)

        layers = self._engine.config.num_layers

        def on_layer(done: int) -> None:
            for entry, tokens in spans:
                entry.tell(len(entry.opened.tokens) + len(tokens) * done // layers)

        def on_states(states: npt.NDArray[np.float32]) -> None:
            ends = itertools.accumulate(len(tokens) for _, tokens in spans)
            for (entry, tokens), end in zip(spans, ends, strict=True):
                if isinstance(entry.answer, Embedding):
                    entry.answer.see(states[end - len(tokens) : end])

        pools = any(isinstance(entry.answer, Embedding) for entry, _ in spans)
        try:
            parts = [(entry.opened, tokens) for entry, tokens in spans]
            logits = self._engine.step(
                parts,
                cancelled=cancelled,
                on_layer=on_layer if reading else ignore,
                on_states=on_states if pools else None,
            )
        except CancelledError:
            return
        except Exception as error:  # of the disk, say: whoever waits for this step has to be told
            for entry, _ in spans:
                self._fail(entry, error)
            return
        for (entry, _), row in zip(spans, logits, strict=True):
            try:
                self._push(entry, row)
            except Exception as error:  # of a callback or a logits processor: the other answers go on
                self._fail(entry, error)
        if alone is not None:
            self._count(alone, began)

    def _propose(self, entry: _Entry) -> list[int]:
        assert self._proposer is not None
        is_plain, self._is_plain = self._is_plain, False
        answer, room = entry.answer, self._engine.most_verified - 1
        most = 0 if is_plain else min(answer.limit - len(answer.ids) - 1, room)
        return self._proposer.propose(answer, answer.prompt, answer.ids, most)

    def _verify(self, entry: _Entry, proposed: Sequence[int], began: float) -> None:
        """A step of one answer: its next token, and what is proposed to follow, as far as it does."""
        answer, opened, tokens = entry.answer, entry.opened, [*entry.pending, *proposed]
        try:
            logits = self._engine.verify(opened, tokens, cancelled=lambda: entry.request.ending is not None)
        except CancelledError:
            return
        except Exception as error:  # as in `_step`
            self._fail(entry, error)
            return
        # What is wrong may be beyond the KV cache's range where what is right isn't, so it tells nothing.
        self._is_plain = opened.state.overflow is not None
        right, failed = 0, None
        try:
            for row in () if self._is_plain else logits:
                right += 1
                self._take(entry, row)
                is_last = answer.reason is not None or right == len(tokens) or entry.request.ending is not None
                if is_last or answer.ids[-1] != tokens[right]:
                    break
        except Exception as error:  # of a callback or a logits processor
            failed = error
        self._engine.accept(opened, tokens[:right])
        self._count(entry, began, max(right - 1, 0))
        if failed is not None:
            self._fail(entry, failed)
        elif answer.reason is not None:
            self._finish(entry)

    def _count(self, entry: _Entry, began: float, accepted: int = 0) -> None:
        """A step of one answer is over."""
        assert self._proposer is not None
        counted = self._proposer.computed(time.perf_counter() - began, accepted)
        self._totals.speculation.add(counted)
        entry.answer.speculation.add(counted)

    def _push(self, entry: _Entry, logits: npt.NDArray[np.float32]) -> None:
        answer = entry.answer
        entry.opened.state.check_range()
        entry.tell(len(entry.opened.tokens))
        if entry.fault is not None:
            raise entry.fault
        if entry.pending:  # the prompt's next chunk
            return
        self._take(entry, logits)
        if answer.reason is not None:
            self._finish(entry)

    def _take(self, entry: _Entry, logits: npt.NDArray[np.float32]) -> None:
        """The answer's next token, from the logits after its last."""
        token = entry.answer.push(logits)
        if token is not None:
            self._totals.new_tokens += 1
            entry.request.put(token)

    def _finish(self, entry: _Entry) -> None:
        finished = entry.answer.finish(entry.request.ending)
        self._leave(entry, finished.completion.finish_reason)
        entry.request.put(finished)

    def _fail(self, entry: _Entry, error: Exception) -> None:
        self._leave(entry, "error")
        entry.request.fail(error)

    def _leave(self, entry: _Entry, reason: str) -> None:
        with self._changed:
            self._running.remove(entry)
            self._totals.finished[reason] += 1
            if entry.conversation is not None:
                self._totals.answer_sec += time.monotonic() - entry.began
        if entry.conversation is not None:
            (self._engine.discard if isinstance(entry.answer, Embedding) else self._engine.keep)(entry.conversation)
