"""What a prediction is made of: sizes, routings, the simulated disk, measured costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_settings import FOUR_B, SMALL, storage
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker import host
from smallthinker.engine import Engine
from smallthinker.errors import ConfigError, MemoryBudgetError, RequestError
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.format import Formats
from smallthinker.expert_store.store import Store
from smallthinker.llm import DEMO_STORE
from smallthinker.memory_plan import MIB, STARTS_DIFFER_BYTES
from smallthinker.models.registry import to_config
from smallthinker.prediction.disk_model import Clock, DiskModel, SimulatedQueue
from smallthinker.prediction.kernel_bench import measure
from smallthinker.prediction.needs import Process, find_model, floor_bytes, full_bytes, memory_plan, weight_bytes
from smallthinker.prediction.routing import synthetic_routing, traced_routing
from smallthinker.prediction.single_calls import compression
from smallthinker.router.trace import Trace

RECORD = 1 << 20


def test_sizes_from_the_configuration_are_those_of_a_store(hybrid_store: Path) -> None:
    for path in (hybrid_store, DEMO_STORE):
        with Store.open(path) as store:
            assert weight_bytes(store.config, store.quant) == (store.dense_bytes, store.record_bytes)
            assert find_model(str(path)).quant == store.quant


@pytest.mark.parametrize("memory_mib", [100, 140, 400])
def test_the_plan_is_the_one_that_the_engine_makes(
    hybrid_store: Path, monkeypatch: pytest.MonkeyPatch, memory_mib: int
) -> None:
    monkeypatch.setattr(host, "resident_bytes", lambda: 50 * MIB)  # else each process holds something else
    monkeypatch.setattr(host, "peak_memory_bytes", lambda: 50 * MIB)
    for path, context in ((hybrid_store, 64), (DEMO_STORE, 300)):
        with Engine(path, memory=memory_mib * MIB, context=context, kv="f16") as engine:
            profile = engine.disk_profile
            process = Process(context, "f16", profile.depth * profile.chunk_bytes, 50 * MIB)
            assert memory_plan(find_model(str(path)), process, memory_mib * MIB) == engine.plan


def test_floor_and_full_are_the_least_budgets_that_do() -> None:
    model, process = find_model("4b"), Process(4096, "f16", MIB, 60 * MIB)
    floor, full = floor_bytes(model, process), full_bytes(model, process)
    with pytest.raises(MemoryBudgetError, match=f"give `memory={floor // MIB}MiB`"):
        memory_plan(model, process, floor - STARTS_DIFFER_BYTES - MIB)
    assert memory_plan(model, process, floor).slots >= model.config.experts_per_token
    assert memory_plan(model, process, full).slots == model.config.num_records
    assert memory_plan(model, process, full - MIB).slots < model.config.num_records


def test_a_model_is_a_name_a_configuration_or_a_folder(
    tmp_path: Path, hybrid_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_config(tiny_config(**HYBRID_ATTENTION))))
    from_file, from_folder, store = (find_model(str(path)) for path in (config, tmp_path, hybrid_store))
    assert from_file.config == from_folder.config == store.config
    assert (from_file.quant, find_model(str(config), "f16").quant) == ("q4_0", "f16")
    assert not from_file.tokenizer_is_measured and store.tokenizer_is_measured and store.is_store
    assert find_model("4B").config == find_model("4b").config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "4b").mkdir()
    with pytest.raises(ConfigError, match=r"4b: this is a shape, and .*\./4b.*4B for the shape"):
        find_model("4b")
    with pytest.raises(ConfigError, match=r"4b, 21b.*found nothing"):
        find_model("none")
    with pytest.raises(ConfigError, match=r"none: expected a config\.json, a \.gguf file.*found nothing"):
        find_model(str(tmp_path / "none"))
    with pytest.raises(RequestError, match="this store is q4_0"):
        find_model(str(hybrid_store), "q8_0")


@given(st.floats(0, 4), st.integers(0, 5))
def test_a_drawn_token_uses_distinct_experts_and_the_seed_decides(skew: float, seed: int) -> None:
    routing = synthetic_routing(SMALL, 5, skew, seed)
    for drawn in (routing.ids, routing.guesses):
        assert drawn.shape == (5, 6, 2)
        assert (drawn[..., 0] != drawn[..., 1]).all() and drawn.max() < 16
    again = synthetic_routing(SMALL, 5, skew, seed)
    assert (again.ids == routing.ids).all() and (again.guesses == routing.guesses).all()


@pytest.mark.parametrize(("skew", "named"), [(0.0, 0.76), (1.3, 0.86)])
def test_the_layer_before_names_as_many_experts_as_was_measured(skew: float, named: float) -> None:
    routing = synthetic_routing(FOUR_B, 100, skew)
    right = (routing.ids[..., :, None] == routing.guesses[..., None, :]).any(-1).mean()
    assert right == pytest.approx(named, abs=0.02)


def test_a_trace_is_replayed_as_it_is_and_over_again() -> None:
    rng = np.random.default_rng(0)
    probs = rng.random((6, 3, 8)).astype(np.float16)
    ids = np.argsort(-probs.astype(np.float32), axis=2, kind="stable")[..., :2].astype(np.uint8)
    routing = traced_routing(Trace(ids, probs, np.zeros(1, np.int64), RECORD, "a test"), 9)
    assert (routing.ids == np.concatenate([ids, ids[:3]])).all()
    named = (routing.ids[..., :, None] == routing.guesses[..., None, :]).any(-1).mean()
    assert 0.5 < named < 1


@given(
    st.sampled_from([128 << 10, 512 << 10, RECORD]), st.integers(1, 8), st.floats(1e-5, 5e-3), st.floats(2e7, 4e9),
    st.integers(1, 8),
)  # fmt: skip
def test_a_simulated_disk_gives_what_its_profile_says(
    chunk: int, depth: int, latency: float, bandwidth: float, queue_depth: int
) -> None:
    disk = DiskModel(storage(bandwidth, latency, queue_depth), chunk, depth, 1)
    clock, count = Clock(), 200
    queue = SimulatedQueue(disk, clock, RECORD)
    for record in range(count):
        queue.submit(record, record)
    done = 0
    while done < count:
        done += len(queue.wait())
    assert count * RECORD / clock.sec == pytest.approx(disk.random_bytes_per_sec, rel=0.08)


def test_a_certain_read_overtakes_guesses_and_what_has_begun_is_withdrawn_in_the_middle() -> None:
    disk = DiskModel(storage(1e9, 100e-6), RECORD // 4, 1, 1)
    clock = Clock()
    queue = SimulatedQueue(disk, clock, RECORD)
    queue.submit(1, 0, speculative=True)
    queue.submit(2, 1, speculative=True)
    queue.submit(3, 2)
    assert queue.cancel(2)  # had not begun
    assert [finished.record for finished in queue.wait()] == [3]
    assert not queue.cancel(1)  # a chunk of it had
    (stopped,) = queue.wait()
    assert stopped.record == 1 and stopped.error is not None
    assert 0 < queue.withdrawn_bytes < RECORD
    with pytest.raises(ValueError, match="nothing is being read"):
        queue.wait()
    queue.submit(4, 0)
    queue.submit(5, 1)
    queue.drain()
    assert queue.poll() == []
    queue.submit(4, 0)
    assert [finished.record for finished in queue.wait()] == [4]


def test_a_simulated_disk_is_busy_while_something_is_under_way() -> None:
    clock = Clock()
    queue = SimulatedQueue(DiskModel(storage(1e9, 100e-6), RECORD // 4, 2, 1), clock, RECORD)
    assert queue.counters().busy_sec == 0
    queue.submit(1, 0)
    queue.submit(2, 1)
    queue.wait()
    assert queue.counters().busy_sec == pytest.approx(clock.sec)
    while queue.poll() or queue.counters().busy_sec == pytest.approx(clock.sec):
        clock.sec += RECORD / 1e9  # idle by then
    busy = queue.counters().busy_sec
    assert 2 * RECORD / 1e9 < busy < clock.sec
    clock.sec += 1
    queue.poll()
    assert queue.counters().busy_sec == busy


@given(st.integers(1, 4), st.floats(1e8, 5e9), st.floats(1e-5, 1e-4))
def test_a_probed_disk_gives_what_the_probe_found(depth: int, bandwidth: float, latency: float) -> None:
    """Where the latency of one block is less than half of the time that a record takes, as it must be for a probe to
    have seen both."""
    found = DiskProfile("direct", RECORD, depth, 1, bandwidth, latency, True)
    disk = DiskModel.of_probe(found, "a test")
    assert disk.random_bytes_per_sec == pytest.approx(bandwidth, rel=0.15)


def test_compression_of_a_format_that_cannot_be_made_here_promises_nothing() -> None:
    assert compression(SMALL, Formats("q5_0")) == (1.0, 0.0)


@pytest.mark.parametrize("formats", [Formats("q4_0"), Formats("q4_0", {"down": "q8_0", "lm_head": "f16"}, whole=True)])
def test_measured_costs_are_positive_and_larger_for_more(formats: Formats) -> None:
    found = measure(SMALL, formats, threads=1)
    assert found.threads == 1 and found.experts_per_token == 2
    for name in ("route_sec", "attend_sec", "one_expert_sec", "head_sec", "memory_bytes_per_sec", "int8_ops_per_sec"):
        assert getattr(found, name) > 0
    assert found.experts_sec(2) >= found.experts_sec(1)
    assert found.chunk_attend_sec(64) >= found.chunk_attend_sec(16)
