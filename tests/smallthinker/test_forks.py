"""A process that was forked from the one that loaded a model: one error in every entry, nothing waits for ever, and
nothing of the parent's is harmed."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import in_child
from gate import Gate

from smallthinker import LLM, AsyncLLM, _kernels
from smallthinker.errors import ForkedError
from smallthinker.generation.request import Request
from smallthinker.llm import TextStream

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # that is what it is about
]

OPTIONS: Any = {"max_tokens": 12, "seed": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(hybrid_store: Path) -> Iterator[LLM]:
    with LLM(hybrid_store, sequences=2) as llm:
        llm.generate("warm", **OPTIONS)
        yield llm


@pytest.fixture
def stream(llm: LLM) -> Iterator[TextStream]:
    """One that is being written, at its second token."""
    gate = Gate(1)
    with llm.stream("The sea", logits_processor=gate, **OPTIONS) as stream:
        gate.wait()
        yield stream
        gate.open()
        for _ in stream:
            pass
        assert stream.completion is not None
        assert stream.completion.finish_reason == "length"


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except ForkedError as e:
        return str(e)
    raise AssertionError("went on")


def of_pool(call: Callable[[_kernels.ThreadPool], object]) -> Callable[[LLM], object]:
    return lambda llm: call(llm._engine.pool)


def multiply(pool: _kernels.ThreadPool) -> None:
    data = _kernels.pack("f32", "tiles", np.ones((32, 32), np.float32))
    _kernels.linear(pool, "f32", data, 32, 32, np.ones((1, 32), np.float32), np.empty((1, 32), np.float32))


async def all_of(stream: Any) -> None:
    async for _ in stream:
        pass


ENTRIES: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate("hi"),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "hi"}]),
    "stream": lambda llm: llm.stream("hi"),
    "submit": lambda llm: llm.submit("hi"),
    "embed": lambda llm: llm.embed("hi"),
    "expert_uses": lambda llm: llm.expert_uses(),
    "cancel": lambda llm: llm.cancel(),
    "stats": lambda llm: llm.scheduler.stats(),
    "async generate": lambda llm: asyncio.run(AsyncLLM(llm).generate("hi")),
    "async chat": lambda llm: asyncio.run(AsyncLLM(llm).chat([{"role": "user", "content": "hi"}])),
    "async embed": lambda llm: asyncio.run(AsyncLLM(llm).embed("hi")),
    "async stream": lambda llm: asyncio.run(all_of(AsyncLLM(llm).stream("hi"))),
    "prefill": lambda llm: llm._engine.prefill([1, 2]),
    "decode": lambda llm: llm._engine.decode(1),
    "all_logits": lambda llm: llm._engine.all_logits([1, 2]),
    "clocks": lambda llm: llm._engine.clocks(),
    "counters": lambda llm: llm._engine.experts.counters(),
    "kernels": of_pool(multiply),
    "scratch": of_pool(lambda pool: pool.release_scratch()),
    "timings": of_pool(lambda pool: pool.timings()),
    "experts": of_pool(lambda pool: _kernels.read_memory(pool, np.ones(64, np.uint8))),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_says_that_the_process_was_forked(
    llm: LLM, stream: TextStream, entry: Callable[[LLM], object]
) -> None:
    if entry is ENTRIES["decode"]:  # nobody has prefilled yet, which is another error
        llm._engine._current = next(iter(llm._engine._conversations))
    said = in_child(lambda: refusal(lambda: entry(llm)))
    llm._engine._current = None
    assert "forked" in said and "spawn" in said and "\\n" not in said


CONTINUED: dict[str, Callable[[Request], object]] = {
    "iterate": next,
    "result": lambda request: request.result(),
    "async for": lambda request: asyncio.run(all_of(request)),
    "aresult": lambda request: asyncio.run(request.aresult()),
    "text": lambda request: next(TextStream(request)),
}


@pytest.mark.parametrize("further", CONTINUED.values(), ids=CONTINUED)
def test_an_answer_can_only_be_followed_where_it_is_written(
    stream: TextStream, further: Callable[[Request], object]
) -> None:
    assert "forked" in in_child(lambda: refusal(lambda: further(stream.request)))


def test_letting_go_in_the_child_ends_and_harms_nothing(hybrid_store: Path) -> None:
    def let_go() -> str:
        nonlocal model, stream
        stream.close()
        model.close()
        with model:
            pass
        asyncio.run(AsyncLLM(model).close())
        del model, stream
        gc.collect()
        return "gone"

    gate = Gate(1)
    model = LLM(hybrid_store)
    expected = model.generate("The sea", **OPTIONS).text
    stream = model.stream("The sea", logits_processor=gate, **OPTIONS)
    gate.wait()
    assert in_child(let_go) == "'gone'"
    gate.open()
    assert stream.request.result().text == expected
    assert model.generate("The sea", **OPTIONS).text == expected
    model.close()


def test_a_model_that_the_child_loads_works_beside_the_parents(
    llm: LLM, stream: TextStream, hybrid_store: Path
) -> None:
    def load() -> str:
        with LLM(hybrid_store) as own:
            assert "forked" in refusal(lambda: llm.generate("The sky"))
            return own.generate("The sky", **OPTIONS).text

    with LLM(hybrid_store) as another:
        assert in_child(load) == repr(another.generate("The sky", **OPTIONS).text)


inherited: LLM


def generate(prompt: str) -> str:
    return inherited.generate(prompt).text


def test_a_pool_of_forked_processes_survives_what_its_workers_are_told(llm: LLM) -> None:
    global inherited
    inherited = llm
    with get_context("fork").Pool(2) as pool:
        for _ in range(2):
            with pytest.raises(ForkedError, match="spawn"):
                pool.map(generate, ["The sea", "The sky"], chunksize=1)
        assert pool.map(abs, [-1]) == [1]
    del inherited


def test_forks_at_any_moment_of_an_answer_end_by_themselves(hybrid_store: Path) -> None:
    """Whatever lock some thread of the parent holds just then. The children end as programs do, with all that is
    registered for then."""
    script = """
import gc, os, signal, sys
from smallthinker import LLM
from smallthinker.errors import ForkedError

def go_on(llm, stream):
    for work in (lambda: llm.generate("hi"), lambda: next(stream), llm.expert_uses):
        try:
            work()
        except ForkedError:
            pass
    stream.close()
    llm.close()

llm = LLM(sys.argv[1], sequences=2)
whole = llm.generate("The sea", max_tokens=400, seed=1, ignore_eos=True).text
stream = llm.stream("The sea", max_tokens=400, seed=1, ignore_eos=True)
pieces, children = [], []
for piece in stream:
    pieces.append(piece)
    if len(pieces) % 30 == 1:
        child = os.fork()
        if not child:
            signal.alarm(300)
            go_on(llm, stream)
            del llm, stream
            gc.collect()
            sys.exit(7)
        children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [7] * len(children)
assert len(children) > 5 and "".join(pieces) == whole
llm.close()
"""
    command = [sys.executable, "-c", script, str(hybrid_store)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
