"""A closed engine gives its memory back at once: an application may open the next one with the same budget."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallthinker.engine import Engine
from smallthinker.expert_store.queues import QueueKind


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
