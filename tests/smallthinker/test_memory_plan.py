from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.sequence_state import SequenceShape
from smallthinker.errors import ContextLengthError, MemoryBudgetError, RequestError
from smallthinker.memory_plan import (
    CHUNKS,
    LONG_CHUNKS,
    MIB,
    STARTS_DIFFER_BYTES,
    MemoryPlan,
    choose_context,
    parse_size,
    plan_memory,
    plan_process,
)
from smallthinker.models.published import PUBLISHED
from smallthinker.models.registry import parse_model

CONFIG = tiny_config(**HYBRID_ATTENTION)
KINDS: list[KvKind] = ["f16", "q8"]


def plan(budget_bytes: int, context: int = 512) -> MemoryPlan:
    return plan_memory(
        CONFIG, budget_bytes=budget_bytes, context=context, dense_bytes=3 * MIB, record_bytes=64 << 10,
        io_bytes=128 << 10, interpreter_bytes=50 * MIB, tokenizer_bytes=MIB,
    )  # fmt: skip


@given(st.integers(62 * MIB, 200 * MIB), st.integers(1, 512))
def test_the_parts_never_exceed_the_budget(budget_bytes: int, context: int) -> None:
    try:
        p = plan(budget_bytes, context)
    except MemoryBudgetError:
        assume(False)
    parts = [
        p.interpreter_bytes,
        p.tokenizer_bytes,
        p.dense_bytes,
        p.kv_bytes,
        p.scratch_bytes,
        p.io_bytes,
        p.slots_bytes,
    ]
    assert sum(parts) <= budget_bytes
    assert CONFIG.experts_per_token <= p.slots <= CONFIG.num_records
    assert p.chunk in (*LONG_CHUNKS, *CHUNKS)


def test_a_long_prompt_is_one_chunk_where_not_everything_fits() -> None:
    model = parse_model(PUBLISHED["4b"])

    def arguments(budget_mib: int) -> dict[str, Any]:
        return {
            "budget_bytes": budget_mib * MIB, "context": 4096, "dense_bytes": 226 * MIB, "record_bytes": 1990656,
            "io_bytes": 4 * MIB, "interpreter_bytes": 66 * MIB, "tokenizer_bytes": 12 * MIB,
        }  # fmt: skip

    def chunk(budget_mib: int, **changes: Any) -> int:
        return plan_memory(model, **arguments(budget_mib) | changes).chunk

    assert chunk(1024) == 4096
    assert chunk(768) == 2048  # what is left must hold two layers' experts
    assert chunk(3072) == 512  # everything fits: a longer one gains nothing
    assert chunk(1024, sequences=2) == 512  # the other answer waits for each chunk
    assert chunk(1024, context=1024) == 1024
    windowed = parse_model(PUBLISHED["gemma-4-26b-a4b"])
    plan = plan_memory(windowed, **arguments(8192) | {"dense_bytes": 2000 * MIB, "record_bytes": 4 * MIB})
    keys = [SequenceShape.of(windowed, 4096, n).nbytes for n in (512, plan.chunk, 2 * plan.chunk)]
    # which a longer chunk takes from the experts, even if no prompt is so long
    assert 512 < plan.chunk < 4096 and keys[1] - keys[0] <= 0.02 * 8192 * MIB < keys[2] - keys[0]


def test_the_floor_that_is_named_is_enough_and_nearly_the_least() -> None:
    with pytest.raises(MemoryBudgetError, match="floor") as e:
        plan(1)
    floor = int(re.search(r"floor of (\d+) MiB", str(e.value))[1]) * MIB  # type: ignore[index]
    assert plan(floor).slots >= CONFIG.experts_per_token
    with pytest.raises(MemoryBudgetError):
        plan(floor - MIB)


@given(
    st.sampled_from(["4b", "21b", "tiny"]), st.integers(1, 16_384), st.integers(1, 64), st.sampled_from(KINDS),
    st.integers(1 << 20, 1 << 33), st.sampled_from([0, 1 << 30, (1 << 32) + 1]),
)  # fmt: skip
def test_the_floor_that_is_named_works_for_every_shape_and_context(
    shape: str, context: int, sequences: int, kv: KvKind, dense_bytes: int, starting_bytes: int
) -> None:
    """Page tables grow with the budget: the floor is the least budget that is enough for its own, and for what the
    process held while it started."""
    model = CONFIG if shape == "tiny" else parse_model(PUBLISHED[shape])
    context = min(context, model.context)

    def plan_at(budget: int) -> MemoryPlan:
        return plan_process(
            model, budget_bytes=budget, context=context, kv="f16" if shape == "tiny" else kv, dense_bytes=dense_bytes,
            record_bytes=64 << 10 if shape == "tiny" else 2 << 20, io_bytes=4 * MIB, resident_bytes=60 * MIB,
            tokenizer_bytes=90 * MIB, sequences=sequences, starting_bytes=starting_bytes,
        )  # fmt: skip

    with pytest.raises(MemoryBudgetError) as e:
        plan_at(1)
    floor = e.value.floor_bytes
    assert floor >= starting_bytes
    assert f"give `memory={floor // MIB}MiB`" in str(e.value)
    assert plan_at(floor).slots >= model.experts_per_token
    assert plan_at(floor - STARTS_DIFFER_BYTES).slots >= model.experts_per_token
    with pytest.raises(MemoryBudgetError):
        plan_at(floor - STARTS_DIFFER_BYTES - MIB)


def test_more_memory_never_means_fewer_slots_at_the_same_chunk() -> None:
    plans = [plan(budget) for budget in range(70 * MIB, 120 * MIB, MIB)]
    assert plans[-1].slots == CONFIG.num_records
    for smaller, larger in pairwise(plans):
        assert smaller.chunk < larger.chunk or smaller.slots <= larger.slots


def test_a_q8_kv_cache_leaves_its_half_to_the_experts() -> None:
    wide = tiny_config(**HYBRID_ATTENTION, head_dim=256)
    f16, q8 = (
        plan_memory(
            wide, budget_bytes=58 * MIB, context=512, dense_bytes=3 * MIB, record_bytes=64 << 10, io_bytes=128 << 10,
            interpreter_bytes=50 * MIB, tokenizer_bytes=0, chunks=(32,), kv=kv,
        )
        for kv in KINDS
    )  # fmt: skip
    assert q8.kv_bytes * 32 == f16.kv_bytes * 17
    assert q8.slots > f16.slots


def test_the_table_adds_up_to_the_budget() -> None:
    lines = plan(100 * MIB).table().splitlines()[1:]
    assert sum(float(line.split()[-2]) for line in lines) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1GiB", 1 << 30), ("1g", 1 << 30), ("1.5 GB", 3 << 29), ("800M", 800 << 20), ("4096", 4096), ("64KiB", 65536)],
)
def test_sizes_are_powers_of_1024_however_spelled(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1G", "1X", "1GiBB", "0x10"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(RequestError, match="memory"):
        parse_size(text)


def test_a_context_beyond_the_model_is_an_error() -> None:
    assert choose_context(CONFIG, None) == 512
    with pytest.raises(ContextLengthError, match="512"):
        choose_context(CONFIG, 513)
    with pytest.raises(ContextLengthError):
        choose_context(CONFIG, 0)
