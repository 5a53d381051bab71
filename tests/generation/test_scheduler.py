"""Requests to one engine from many sides: order, bounds, endings, and what one must never do to another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate import Gate, until

from smallthinker.engine import Engine
from smallthinker.errors import ContextLengthError, QueueFullError, RequestError, StoreReadError
from smallthinker.generation.answer import Finished, GenerationParams, Token
from smallthinker.generation.request import Request
from smallthinker.generation.scheduler import Scheduler

PROMPT = list(b"The sea was calm")
LONG = GenerationParams(max_tokens=400, seed=1, ignore_eos=True)
SHORT = GenerationParams(max_tokens=5, seed=1, ignore_eos=True)


@pytest.fixture
def engine(hybrid_store: Path) -> Iterator[Engine]:
    with Engine(hybrid_store, threads=1) as engine:
        yield engine


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, max_waiting=2)
    yield scheduler
    scheduler.close()


class Held:
    """A request that stays before its first token until `let_go`."""

    def __init__(self, scheduler: Scheduler, params: GenerationParams = SHORT, **options: Any) -> None:
        self._gate = Gate()
        self.request = scheduler.submit(PROMPT, params, logits_processor=self._gate, **options)
        self._gate.wait()

    def let_go(self) -> Request:
        self._gate.open()
        return self.request


def test_requests_are_served_in_the_order_in_which_they_came(scheduler: Scheduler) -> None:
    order: list[int] = []
    held = Held(scheduler)

    def note(i: int) -> Callable[[int, int], None]:
        return lambda done, total: order.append(i)

    waiting = [scheduler.submit(PROMPT, SHORT, on_prefill=note(i)) for i in range(2)]
    assert (scheduler.stats().running, scheduler.stats().waiting) == (1, 2)
    held.let_go()
    for request in waiting:
        request.result()
    assert order == sorted(order) and set(order) == {0, 1}


def test_more_than_may_wait_is_refused_with_a_time_to_come_back(scheduler: Scheduler) -> None:
    held = Held(scheduler)
    waiting = [scheduler.submit(PROMPT, SHORT) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting") as full:
        scheduler.submit(PROMPT, SHORT)
    assert full.value.retry_after_sec >= 1
    held.let_go()
    for request in waiting:
        request.result()
    assert scheduler.submit(PROMPT, SHORT).result().finish_reason == "length"


def test_a_request_that_waits_can_be_cancelled_and_makes_room(scheduler: Scheduler) -> None:
    held = Held(scheduler)
    first, second = scheduler.submit(PROMPT, SHORT), scheduler.submit(PROMPT, SHORT)
    first.cancel()
    held.let_go()
    completion = first.result()
    assert (completion.finish_reason, completion.text, completion.token_ids) == ("cancelled", "", ())
    assert completion.stats.queue_sec > 0
    assert second.result().finish_reason == "length"


def test_cancelling_ends_an_answer_and_says_so(scheduler: Scheduler) -> None:
    gate = Gate(1)
    request = scheduler.submit(PROMPT, LONG, logits_processor=gate)
    tokens = [next(request)]
    request.cancel()
    gate.open()
    tokens += request
    assert isinstance(tokens[-1], Finished)
    assert tokens[-1].completion.finish_reason == "cancelled"
    assert "".join(event.text for event in tokens) == tokens[-1].completion.text
    assert list(request) == []  # nothing comes after the end


def test_a_prompt_is_given_up_between_two_layers(hybrid_store: Path) -> None:
    with Engine(hybrid_store, chunk=8) as engine:
        scheduler = Scheduler(engine)
        done: list[int] = []

        def cancel(tokens: int, _: int) -> None:
            done.append(tokens)
            request.cancel()

        ready = threading.Event()
        request = scheduler.submit(
            [1] * 300, SHORT, on_prefill=lambda tokens, total: (ready.wait(), cancel(tokens, total))[1]
        )
        ready.set()
        assert request.result().finish_reason == "cancelled"
        assert len(done) == 1 and 0 < done[0] < 8
        scheduler.close()


def test_an_answer_whose_time_is_over_ends_wherever_it_is(scheduler: Scheduler) -> None:
    held = Held(scheduler)
    waiting = scheduler.submit(PROMPT, SHORT, timeout_sec=1e-9)
    held.let_go()
    assert waiting.result().finish_reason == "timeout"
    with pytest.raises(RequestError, match="timeout_sec: expected a number above 0, or None, found 0"):
        scheduler.submit(PROMPT, SHORT, timeout_sec=0)


def test_what_can_never_be_computed_is_refused_at_once(scheduler: Scheduler) -> None:
    for prompt, params, error in (
        ([], SHORT, RequestError),
        ([999], SHORT, RequestError),
        ([1] * 600, SHORT, ContextLengthError),
        ([1] * 300, LONG, ContextLengthError),
    ):
        with pytest.raises(error):
            scheduler.submit(prompt, params)
    with pytest.raises(RequestError, match="logprobs: expected a whole number from 0 to 64, found 65"):
        scheduler.submit(PROMPT, SHORT, logprobs=65)


def test_a_logits_processor_decides_what_may_come(scheduler: Scheduler) -> None:
    seen: list[list[int]] = []

    def only_x(ids: Sequence[int], logits: np.ndarray) -> None:
        seen.append(list(ids))
        allowed = logits[ord("x")]
        logits[:] = -np.inf
        logits[ord("x")] = allowed

    free = scheduler.submit(PROMPT, SHORT, logprobs=0).result()
    bound = scheduler.submit(PROMPT, SHORT, logits_processor=only_x, logprobs=2).result()
    assert bound.text == "xxxxx"
    assert seen == [[ord("x")] * n for n in range(5)]
    assert bound.logprobs is not None and free.logprobs is not None
    assert bound.logprobs[0].top != ((ord("x"), 0.0),)  # the model's own, whatever was allowed
    assert [entry.top for entry in free.logprobs] == [()] * 5


def test_logprobs_are_those_of_the_model(engine: Engine, scheduler: Scheduler) -> None:
    params = GenerationParams(max_tokens=6, temperature=0, ignore_eos=True, repeat_penalty=1.7)
    completion = scheduler.submit(PROMPT, params, logprobs=3).result()
    assert completion.logprobs is not None
    logits = engine.all_logits(PROMPT + list(completion.token_ids[:-1]))[len(PROMPT) - 1 :].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for entry, id, row in zip(completion.logprobs, completion.token_ids, logprobs, strict=True):
        best = np.argsort(-row, kind="stable")[:3].tolist()
        assert entry.id == id
        assert entry.logprob == pytest.approx(row[id])
        assert [i for i, _ in entry.top] == best
        assert [p for _, p in entry.top] == pytest.approx(row[best].tolist())


def test_a_broken_callback_breaks_its_own_answer_only(hybrid_store: Path) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("broken")

    def forbid(ids: Sequence[int], logits: np.ndarray) -> None:
        logits[:] = -np.inf

    with Engine(hybrid_store, sequences=4) as engine:
        scheduler = Scheduler(engine)
        expected = scheduler.submit(PROMPT, LONG).result().token_ids
        gate = Gate(1)
        good = scheduler.submit(PROMPT, LONG, logits_processor=gate)
        next(good)
        gate.open()
        for options, error in (
            ({"logits_processor": fail}, ZeroDivisionError),
            ({"on_prefill": fail}, ZeroDivisionError),
            ({"logits_processor": forbid}, RequestError),
        ):
            with pytest.raises(error):
                scheduler.submit(PROMPT, SHORT, **options).result()  # type: ignore[arg-type]
        assert good.result().token_ids == expected
        assert scheduler.stats().finished == {"length": 2, "error": 3}
        scheduler.close()


def test_a_disk_that_fails_breaks_the_answers_of_the_step_and_no_later_ones(
    hybrid_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(hybrid_store, sequences=2) as engine:
        scheduler = Scheduler(engine)
        expected = scheduler.submit(PROMPT, SHORT).result().token_ids
        held = Held(scheduler)
        other = scheduler.submit(PROMPT[:-1], SHORT)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", lambda *_, **__: (_ for _ in ()).throw(StoreReadError("experts: gone")))
            for request in (held.let_go(), other):
                with pytest.raises(StoreReadError, match="gone"):
                    request.result()
        assert scheduler.submit(PROMPT, SHORT).result().token_ids == expected
        scheduler.close()


def test_a_long_prompt_does_not_stop_the_answers_that_are_being_written(hybrid_store: Path) -> None:
    """They get a token in every step in which a piece of it is computed, and the pieces are small."""
    with Engine(hybrid_store, sequences=3, chunk=32) as engine:
        scheduler = Scheduler(engine)
        gate = Gate(1)
        writing = [scheduler.submit(PROMPT[:n], LONG, logits_processor=gate) for n in (5, 7)]
        for request in writing:
            next(request)
        pieces: list[int] = []
        steps: list[int] = []

        def note(done: int, _: int) -> None:
            if done % 30 == 0:  # between two steps
                pieces.append(done)
                steps.append(scheduler.stats().new_tokens)

        prompt = scheduler.submit([1] * 300, SHORT, on_prefill=note)
        gate.open()
        prompt.result()
        for request in writing:
            request.cancel()
            request.result()
        scheduler.close()
    assert pieces == [*range(30, 301, 30)]
    assert all(after - before >= 2 for before, after in pairwise(steps))


def test_totals_count_what_happened(scheduler: Scheduler, engine: Engine) -> None:
    scheduler.submit(PROMPT, SHORT).result()
    scheduler.submit([*PROMPT, 7], SHORT).result()
    stats = scheduler.stats()
    assert (stats.prompt_tokens, stats.new_tokens, stats.reused_tokens) == (33, 10, 16)
    assert stats.finished == {"length": 2}
    assert 0 < stats.kv_bytes <= stats.kv_planned_bytes
    assert stats.memory_bytes > 0
    assert 0 <= stats.hit_rate <= 1
    assert (stats.running, stats.waiting) == (0, 0)


def test_closing_ends_what_runs_and_what_waits(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    gate = Gate(1)
    requests = [scheduler.submit(PROMPT, LONG, logits_processor=gate) for _ in range(4)]
    next(requests[0])
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    until(lambda: requests[-1].ending)
    gate.open()
    closer.join()
    scheduler.close()
    assert [request.result().finish_reason for request in requests] == ["cancelled"] * 4
    with pytest.raises(RequestError, match="closed"):
        scheduler.submit(PROMPT, SHORT)


def test_many_clients_that_come_and_vanish_get_what_they_get_alone(hybrid_store: Path) -> None:
    params = GenerationParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = [np.random.default_rng(seed).integers(0, 256, 3 + seed % 7).tolist() for seed in range(24)]
    with Engine(hybrid_store, sequences=3) as engine:
        alone = Scheduler(engine)
        expected = [alone.submit(prompt, params).result().token_ids for prompt in prompts]
        alone.close()
        engine.forget()
        scheduler = Scheduler(engine)
        found: dict[int, tuple[int, ...]] = {}

        def client(first: int) -> None:
            for i in range(first, len(prompts), 6):
                request = scheduler.submit(prompts[i], params)
                if i % 3 == 0:  # vanishes after some tokens
                    for _, _ in zip(range(i % 5), request, strict=False):
                        pass
                    request.cancel()
                tokens = [event.id for event in request if isinstance(event, Token)]
                if i % 3:
                    found[i] = tuple(tokens)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = scheduler.stats()
        scheduler.close()
    assert found == {i: ids for i, ids in enumerate(expected) if i % 3}
    assert (stats.running, stats.waiting, sum(stats.finished.values())) == (0, 0, 24)
