"""Memory that a start turned out not to need is the experts', within the budget; a run's text doesn't know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_store, tiny_config

from smallthinker import host
from smallthinker.engine import Engine
from smallthinker.errors import MemoryBudgetError
from smallthinker.memory_plan import MIB
from smallthinker.spare_memory import KEPT_BYTES, SpareMemory

BUDGET, RECORD = 1024 * MIB, 2 * MIB


def holding(monkeypatch: pytest.MonkeyPatch, resident: int, uncharged: int = BUDGET) -> None:
    monkeypatch.setattr(host, "resident_bytes", lambda: resident)
    monkeypatch.setattr(host, "uncharged_bytes", lambda default: min(default, uncharged))


def test_what_is_not_used_is_lent_but_for_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = SpareMemory(BUDGET, RECORD, planned=300, most=1000)
    holding(monkeypatch, BUDGET - 20 * MIB)
    assert not spare.look(7, taken=300, planned=300) and spare.slots == 0  # too early
    assert not spare.look(8, taken=299, planned=300)  # not all of what is planned has been taken
    assert spare.look(9, taken=300, planned=300) and spare.slots == (20 * MIB - KEPT_BYTES) // RECORD
    assert not spare.look(10, taken=300, planned=300)  # just now
    # the lent ones are taken: nothing has changed
    holding(monkeypatch, BUDGET - KEPT_BYTES)
    assert not spare.look(1000, taken=306, planned=300) and spare.slots == 6
    # a context has grown, whose memory was lent by the plan: not what is spare here
    assert not spare.look(2000, taken=256, planned=250) and spare.slots == 6


def test_it_is_given_back_where_something_else_takes_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = SpareMemory(BUDGET, RECORD, planned=300, most=1000)
    holding(monkeypatch, BUDGET - 20 * MIB)
    spare.look(8, taken=300, planned=300)
    holding(monkeypatch, BUDGET - 4 * MIB)
    assert spare.look(1000, taken=306, planned=300) and spare.slots == 4
    holding(monkeypatch, BUDGET + 40 * MIB)
    assert spare.look(2000, taken=304, planned=300) and spare.slots == 0


def test_a_cgroups_limit_counts_pages_of_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = SpareMemory(BUDGET, RECORD, planned=300, most=1000)
    holding(monkeypatch, BUDGET - 30 * MIB, uncharged=12 * MIB)
    assert spare.look(8, taken=300, planned=300) and spare.slots == 2


@pytest.mark.parametrize(
    ("record", "planned", "most", "expected"),
    [
        (RECORD, 300, 999, 16),
        (RECORD, 20, 999, 5),
        (RECORD, 300, 303, 3),
        (RECORD, 300, 300, 0),
        (64 * MIB, 300, 999, 0),
    ],
)
def test_no_more_than_a_start_may_need_nor_than_the_model_has(
    record: int, planned: int, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = SpareMemory(BUDGET, record, planned, most)
    assert spare.most == expected
    holding(monkeypatch, 0)
    spare.look(8, taken=planned, planned=planned)
    assert spare.slots == expected


def test_an_engine_uses_it_and_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = make_store(tiny_config(hidden_size=128, moe_ffn_hidden_size=1024), tmp_path)
    text, answer = list(b"the sea came in"), list(b"and went out again, and again, as it does")

    def logits(engine: Engine) -> list[np.ndarray]:
        return [engine.prefill(text)[0], *map(engine.decode, answer)]

    with Engine(store) as engine:
        expected, records = logits(engine), engine.store.num_experts
    with pytest.raises(MemoryBudgetError) as floor:
        Engine(store, memory=1, context=128)
    with Engine(store, memory=floor.value.floor_bytes + 2 * MIB, context=128) as engine:
        planned = engine.plan.most_slots
        assert planned < records and engine.experts.limit == planned
        monkeypatch.setattr(host, "resident_bytes", lambda: 0)
        found = logits(engine)
        assert planned < engine.experts.limit <= planned + planned // 4
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
