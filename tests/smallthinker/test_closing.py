"""A closed engine gives its memory back at once: an application may open the next one with the same budget."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gate import Gate, until

import smallthinker.llm as llm_module
from smallthinker import LLM, AsyncLLM
from smallthinker.engine import Engine
from smallthinker.errors import SmallThinkerError
from smallthinker.expert_store.queues import QueueKind

OWN_THREADS = {"smallthinker", "memory watch", "huge pages"}
OPTIONS: Any = {"max_tokens": 12, "seed": 1, "ignore_eos": True}
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def weights(engine: Engine) -> list[weakref.ref[Any]]:
    dense = engine.store._dense
    return [weakref.ref(memory) for memory in (engine.experts.slots.base, dense)]


@pytest.mark.parametrize("reader", ["direct", "mmap"])
@pytest.mark.usefixtures("no_collector")
def test_closing_frees_the_weights_although_the_engine_is_kept(hybrid_store: Path, reader: QueueKind) -> None:
    with Engine(hybrid_store, max_slots=12, context=64, reader=reader) as engine:
        engine.prefill([1, 2, 3])
        engine.decode(4)
        held = weights(engine)
    assert [memory() for memory in held] == [None, None]
    assert engine.experts.counters().misses > 0


@pytest.mark.usefixtures("no_collector")
def test_nothing_of_a_closed_engine_waits_for_the_collector(hybrid_store: Path) -> None:
    engine = Engine(hybrid_store, max_slots=12, context=64)
    engine.prefill([1, 2, 3])
    engine.close()
    gone = weakref.ref(engine)
    del engine
    assert gone() is None


@pytest.fixture
def no_failing_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    yield
    assert failed == []


def taken(store: Path, generation: int = 2) -> tuple[list[str], int, int]:
    """What this package takes from the system: Python threads by name, native threads, open files of the store. Others
    in this process (servers of other tests, a browser's connection) come and go as they like."""
    gc.collect(generation)
    threads = [thread.name for thread in threading.enumerate() if thread.name in OWN_THREADS]
    native = len(list(Path("/proc/self/task").iterdir())) - threading.active_count()
    files = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            files += link.readlink().is_relative_to(store.resolve())
    return threads, native, files


@pytest.fixture
def nothing_is_left(hybrid_store: Path) -> Iterator[None]:
    with LLM(hybrid_store) as first:  # libraries keep what they take at their first use
        first.generate("hi", **OPTIONS)
    del first
    before = taken(hybrid_store)
    yield
    if taken(hybrid_store, generation=1) == before:  # what is young is looked through in a moment
        return
    for _ in range(10_000):  # a thread of others that has just ended is a task for a moment longer
        if taken(hybrid_store) == before:
            break
        os.sched_yield()
    assert taken(hybrid_store) == before


def opened(store: Path, how: str) -> LLM:
    """all: every expert in memory, read as it comes; some: few slots, of which most are never taken."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "some":
            patch.setattr(llm_module, "Engine", partial(Engine, max_slots=12))
        return LLM(store, sequences=2)


@needs_proc
@pytest.mark.parametrize("how", ["all", "some"])
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_many_threads_close_at_once_and_each_comes_back_when_all_is_free(hybrid_store: Path, how: str) -> None:
    for _ in range(3):
        llm = opened(hybrid_store, how)
        gate = Gate(1)
        request = llm.submit("The sea", logits_processor=gate, **OPTIONS)
        next(request)
        start, left = threading.Barrier(8), []

        def close(llm: LLM = llm, start: threading.Barrier = start, left: list[object] = left) -> None:
            start.wait()
            llm.close()
            left.append(llm._engine.experts.slots.size)

        closers = [threading.Thread(target=close) for _ in range(8)]
        for closer in closers:
            closer.start()
        until(lambda request=request: request.ending)
        gate.open()
        for closer in closers:
            closer.join()
        assert left == [0] * 8
        assert request.result().finish_reason == "cancelled"


@needs_proc
@pytest.mark.parametrize("where", ["logits_processor", "on_prefill"])
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_callback_may_close_the_model_that_it_is_called_by(hybrid_store: Path, where: str) -> None:
    llm = LLM(hybrid_store)
    request = llm.submit("The sea", **{where: lambda *_: llm.close()}, **OPTIONS)
    assert request.result().finish_reason == "cancelled"
    llm.close()
    assert llm._engine.experts.slots.size == 0


@needs_proc
@pytest.mark.parametrize("how", ["all", "some"])
@pytest.mark.parametrize(("used", "in_cycle"), [(False, True), (True, False)])
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_dropped_model_is_freed_and_says_so(hybrid_store: Path, how: str, used: bool, in_cycle: bool) -> None:
    llm = opened(hybrid_store, how)
    if used:
        llm.generate("The sea", **OPTIONS)
    memory, thread = weakref.ref(llm._engine.experts.slots.base), llm.scheduler._thread
    if in_cycle:
        llm.itself = llm  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning, match="LLM was dropped"):  # noqa: PT031
        del llm
        gc.collect()
    assert not thread.is_alive()
    assert memory() is None


@needs_proc
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_dropped_model_lives_until_its_answers_have_ended(hybrid_store: Path) -> None:
    llm = LLM(hybrid_store)
    expected = llm.generate("The sea", **OPTIONS).text
    thread = llm.scheduler._thread
    streams = [llm.stream("The sea", **OPTIONS) for _ in range(2)]
    gone = weakref.ref(llm)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ResourceWarning)
        del llm
        assert ["".join(stream) for stream in streams] == [expected] * 2
        thread.join()  # dropped by the last answer, on the thread itself
    assert [str(w.message)[:18] for w in said if w.category is ResourceWarning] == ["an LLM was dropped"]
    said.clear()  # a warning knows its source
    assert gone() is None
    assert streams[0].completion is not None  # a stream that has ended holds nothing but its answer


@needs_proc
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_dropped_stream_lets_go_of_a_dropped_model(hybrid_store: Path) -> None:
    gate = Gate(1)
    llm = LLM(hybrid_store)
    stream = llm.stream("The sea", logits_processor=gate, **OPTIONS)
    thread = llm.scheduler._thread
    gate.wait()
    del llm, stream
    gate.open()
    thread.join()


@needs_proc
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_dropped_engine_is_freed_and_says_so(hybrid_store: Path) -> None:
    engine = Engine(hybrid_store, max_slots=12, context=64)
    engine.prefill([1, 2, 3])
    memory = weakref.ref(engine.experts.slots.base)
    with pytest.warns(ResourceWarning, match="Engine was dropped"):  # noqa: PT031
        del engine
        gc.collect()
    assert memory() is None


@needs_proc
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_dropped_async_model_is_freed(hybrid_store: Path) -> None:
    async def run() -> None:
        llm = await AsyncLLM.load(hybrid_store)
        assert (await llm.generate("The sea", **OPTIONS)).text

    with pytest.warns(ResourceWarning, match="LLM was dropped"):
        asyncio.run(run())


@needs_proc
@pytest.mark.parametrize(
    "options",
    [{"max_waiting": 0}, {"memory": "20MiB"}, {"lossy_head": "/nowhere"}, {"kv_dir": "/dev/null/x"}, {"reader": "x"}],
)
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_model_that_cannot_be_made_leaves_nothing(hybrid_store: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with pytest.raises(SmallThinkerError):
            LLM(hybrid_store, **options)
        gc.collect()


@needs_proc
@pytest.mark.usefixtures("no_failing_thread", "nothing_is_left")
def test_a_closed_model_that_is_kept_holds_no_thread_and_no_file(hybrid_store: Path) -> None:
    before = taken(hybrid_store)
    llm = LLM(hybrid_store)
    llm.generate("The sea", **OPTIONS)
    llm.close()
    assert taken(hybrid_store) == before


@pytest.mark.parametrize("what", ["LLM(sys.argv[1])", "Engine(sys.argv[1])", "LLM(sys.argv[1]).stream('The sea')"])
def test_a_program_that_ends_without_closing_ends(hybrid_store: Path, what: str) -> None:
    script = f"import sys\nfrom smallthinker import LLM\nfrom smallthinker.engine import Engine\nkept = {what}\n"
    command = [sys.executable, "-c", script, str(hybrid_store)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
