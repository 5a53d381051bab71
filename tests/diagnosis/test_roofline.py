from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.cache.read_counters import CacheCounters
from smallthinker.engine import Engine
from smallthinker.generation.answer import GenerationParams
from smallthinker.generation.scheduler import Scheduler
from smallthinker.measures.profile import Clocks, KernelTime
from smallthinker.measures.roofline import Phase

MB = 10**6


def phase(arithmetic_sec: float, experts: CacheCounters, probed: float | None, tokens: int = 10) -> Phase:
    """One of 2 seconds."""
    clocks = Clocks(tokens, 2.0, experts.stall_sec, {"experts": KernelTime(1, arithmetic_sec)})
    return Phase.of(clocks, experts, probed)


def test_the_roofline_is_the_larger_of_arithmetic_and_needed_bytes() -> None:
    read = CacheCounters(misses=2, late=2, certain_bytes=60 * MB, useful_bytes=40 * MB, stall_sec=1.0, busy_sec=1.5)
    disk = phase(0.5, read, probed=100 * MB).roofline
    assert (disk.bound, disk.sec_per_token, disk.tok_per_sec) == ("disk", pytest.approx(0.1), pytest.approx(10))
    assert disk.share == pytest.approx(0.5)
    arithmetic = phase(0.5, read, probed=400 * MB).roofline
    assert (arithmetic.bound, arithmetic.sec_per_token) == ("arithmetic", pytest.approx(0.05))
    assert arithmetic.disk_sec_per_token == pytest.approx(0.025) and arithmetic.share == pytest.approx(0.25)


def test_wasted_bytes_raise_no_roof_but_show_what_the_disk_gave() -> None:
    read = CacheCounters(certain_bytes=60 * MB, wasted_bytes=60 * MB, stall_sec=0.5, busy_sec=1.0)
    without_probe = phase(0.1, read, probed=None)
    assert without_probe.needed_bytes == 60 * MB and without_probe.disk_bytes_per_sec_seen == 120 * MB
    assert without_probe.roofline.disk_sec_per_token == pytest.approx(0.05)
    assert phase(0.1, read, probed=60 * MB).roofline == without_probe.roofline  # the faster of the two counts
    assert phase(0.1, read, probed=240 * MB).roofline.disk_sec_per_token == pytest.approx(0.025)


def test_what_a_throttle_saved_up_while_idle_is_no_faster_disk() -> None:
    """It allows 100 MB in the 2 s; 90 came in the 0.6 s in which reads were under way."""
    read = CacheCounters(certain_bytes=90 * MB, stall_sec=0.5, busy_sec=0.6)
    clocks = Clocks(10, 2.0, read.stall_sec, {"experts": KernelTime(1, 0.1)})
    free, throttled = (Phase.of(clocks, read, 200 * MB, allowed) for allowed in (None, 50 * MB))
    assert free.roofline.share == pytest.approx(0.225)  # by the probe
    assert throttled.roofline.share == pytest.approx(0.9)
    assert throttled.to_dict()["disk_bytes_per_sec_allowed"] == 50 * MB
    saved_before = Phase.of(clocks, read, 200 * MB, 40 * MB).roofline
    assert saved_before.share == 1.0 and saved_before.disk_sec_per_token == pytest.approx(0.225)


def test_nothing_read_and_nothing_computed_divide_by_nothing() -> None:
    in_memory = phase(1.5, CacheCounters(hits=40), probed=100 * MB)
    assert in_memory.disk_bytes_per_sec_seen is None
    assert (in_memory.roofline.bound, in_memory.roofline.share) == ("arithmetic", 0.75)
    empty = Phase.of(Clocks(), CacheCounters(), None).to_dict()
    assert empty["roofline"]["share"] == empty["roofline"]["tok_per_sec"] == empty["experts"]["hit_rate"] == 0
    assert empty["disk_bytes_per_sec_seen"] is empty["disk_bytes_per_sec_probed"] is None


@given(
    st.integers(0, 10**10), st.integers(0, 10**10), st.floats(0, 1), st.floats(1e-6, 1), st.none() | st.floats(1, 1e11)
)
def test_no_phase_beats_its_roofline(
    needed: int, wasted: int, kernels: float, busy: float, probed: float | None
) -> None:
    """As long as kernels and the disk are each busy for no longer than the phase lasted."""
    read = CacheCounters(certain_bytes=needed, wasted_bytes=wasted, busy_sec=busy * 2.0)
    assert 0 <= phase(kernels * 2.0, read, probed).roofline.share <= 1 + 1e-9


@pytest.mark.parametrize("max_tokens", [1, 12])
@pytest.mark.parametrize("slots", [2, 32])
def test_an_answers_figures_add_up(hybrid_store: Path, max_tokens: int, slots: int) -> None:
    with Engine(hybrid_store, max_slots=slots) as engine:
        scheduler = Scheduler(engine)
        params = GenerationParams(max_tokens=max_tokens, ignore_eos=True, seed=0)
        completion = scheduler.submit([1, 2, 3, 4, 5], params).result()
        scheduler.close()
        stats = completion.stats
        each = engine.store.record_bytes
    figures = json.loads(json.dumps(stats.to_dict()))
    for name, tokens in (("prefill", 5), ("decode", max_tokens - 1)):
        part = figures[name]
        assert part["tokens"] == tokens
        assert part["arithmetic_sec"] + part["python_sec"] + part["stall_sec"] == pytest.approx(part["wall_sec"])
        assert part["needed_bytes"] == part["certain_bytes"] + part["useful_bytes"]
        assert part["bytes_read"] == part["needed_bytes"] + part["wasted_bytes"]
        assert part["late_bytes"] <= part["useful_bytes"] and part["reread_bytes"] <= part["bytes_read"]
        experts = part["experts"]
        assert experts["requests"] == sum(experts[key] for key in ("hits", "guessed", "late", "misses"))
        assert part["certain_bytes"] == experts["misses"] * each
        assert (part["disk_bytes_per_sec_seen"] is None) == (part["bytes_read"] == 0)
        assert part["disk_bytes_per_sec_probed"] is None  # too small a store to be a measure of a disk
        assert 0 <= part["roofline"]["share"] <= 1.05
        assert math.isfinite(part["roofline"]["tok_per_sec"])
    assert figures["sampling_sec"] + figures["text_sec"] > 0
    assert figures["decode"]["wall_sec"] <= figures["decode_sec"] or max_tokens == 1
    assert ("of the roofline" in stats.line()) == (figures["decode"]["bytes_read"] > 0)
    if slots == 2 and max_tokens > 1:
        assert figures["decode"]["reread_bytes"] > 0 and "of the roofline" in stats.line()
