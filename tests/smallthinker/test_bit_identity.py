"""The first promise: tokens and logits are the same bits whatever the memory, reader, compression, prefetch, chunking
or threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import ShuffledQueue
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

import smallthinker.engine as engine_module
from smallthinker.cache.kv_ring import KvKind
from smallthinker.cache.policies import POLICIES
from smallthinker.engine import Engine
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.store import Store

EMULATED = StorageProfile("test", "a quick one", "class", 2e8, 1e8, 1e5, 5e-5, 2, "made up for this test")


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.integers(1, 4))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    experts = draw(st.sampled_from([4, 7, 8]))
    flags = st.lists(st.integers(0, 1), min_size=layers, max_size=layers)
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 2, 3])),
        "num_key_value_heads": kv_heads,
        "head_dim": 32,
        "hidden_size": draw(st.sampled_from([32, 64, 96])),
        "moe_ffn_hidden_size": draw(st.sampled_from([32, 64])),
        "moe_num_primary_experts": experts,
        "moe_num_active_primary_experts": draw(st.integers(1, min(4, experts))),
        "moe_primary_router_apply_softmax": draw(st.booleans()),
        "rope_layout": draw(flags),
        "sliding_window_layout": draw(flags),
        "sliding_window_size": draw(st.sampled_from([3, 8, 20])),
        "tie_word_embeddings": draw(st.booleans()),
    }


@contextmanager
def engines_with(patch: pytest.MonkeyPatch, timing: int | None, policy: str) -> Iterator[None]:
    """Engines made meanwhile evict by this policy; with a seed for `timing`, their reads end at random times."""
    patch.setattr(engine_module, "DEFAULT_POLICY", POLICIES[policy])

    def shuffled(_: Any, store: Store, slots: np.ndarray, *__: Any) -> ShuffledQueue:
        file, nbytes = np.fromfile(store.experts_file.path, np.uint8), store.record_bytes

        def read(record: int, slot: np.ndarray) -> None:
            slot[:] = file[store.record_offset(record) :][:nbytes]

        return ShuffledQueue(slots, read, timing or 0)

    if timing is not None:
        patch.setattr(engine_module, "open_queue", shuffled)
    yield


@given(
    config=configs(), quant=st.sampled_from(["q4_0", "q8_0", "f16"]), kv=st.sampled_from(["f16", "q8"]), data=st.data()
)
@settings(max_examples=15)
def test_every_way_to_run_gives_the_same_bits(
    config: dict[str, Any], quant: str, kv: KvKind, data: st.DataObject
) -> None:
    parsed = tiny_config(**config)
    prompt = np.random.default_rng(0).integers(0, 256, data.draw(st.integers(1, 40), label="prompt")).tolist()
    answer = np.random.default_rng(1).integers(0, 256, 24).tolist()
    everything, floor = parsed.num_records, parsed.experts_per_token
    with tempfile.TemporaryDirectory() as folder:
        store, _ = make_store(parsed, Path(folder), quant)
        # what is too small to save a page stays as it is: only f16 of larger shapes is compressed; see test_compression
        small = convert(Path(folder) / "checkpoint", Path(folder) / "small", quant, compress=1)

        def run(
            compressed: bool = False,
            timing: int | None = None,
            policy: str = "frequency",
            sizes: list[int] | None = None,
            **options: Any,
        ) -> list[np.ndarray]:
            with (
                pytest.MonkeyPatch.context() as patch,
                engines_with(patch, timing, policy),
                # the queue of random times reads bytes as they lie in the file
                Engine(small if compressed and timing is None else store, kv=kv, **options) as engine,
            ):
                found = [engine.prefill(prompt)[0]]
                for token, size in zip(answer, sizes or [0] * len(answer), strict=True):
                    if size:
                        engine.experts.resize(size)
                    found.append(engine.decode(token))
                return found

        baseline = run(max_slots=everything, reader="mmap", prefetch=True, threads=1)
        for slots in (everything, max(floor, everything // 2), max(floor, everything // 4), floor):
            options = {
                "max_slots": slots,
                "compressed": data.draw(st.booleans(), label="compressed"),
                "reader": data.draw(st.sampled_from(["mmap", "direct", "buffered"]), label="reader"),
                "timing": data.draw(st.none() | st.integers(0, 1 << 16), label="timing"),
                "policy": data.draw(st.sampled_from(list(POLICIES)), label="policy"),
                "sizes": data.draw(
                    st.none() | st.lists(st.integers(floor, everything), min_size=24, max_size=24), label="sizes"
                ),
                "storage": data.draw(st.none() | st.just(EMULATED), label="storage"),
                "look_ahead": data.draw(st.booleans(), label="look ahead"),
                "prefetch": data.draw(st.booleans(), label="prefetch"),
                "threads": data.draw(st.integers(1, 3), label="threads"),
                "chunk": data.draw(st.sampled_from([1, 3, 7, 64]), label="chunk"),
            }
            for found, expected in zip(run(**options), baseline, strict=True):
                assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), options


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_a_context_of_several_splits_gives_the_same_bits_in_any_chunks_on_any_threads(
    tmp_path: Path, kv: KvKind
) -> None:
    """Attention begins new sums every 512 positions; decoding shares the splits out to threads, prefill doesn't."""
    config = tiny_config(**HYBRID_ATTENTION | {"sliding_window_size": 600}, head_dim=32, max_position_embeddings=2048)
    store, _ = make_store(config, tmp_path, "f16")
    prompt = np.random.default_rng(0).integers(0, 256, 1100).tolist()

    def run(chunk: int, threads: int, whole: int) -> list[np.ndarray]:
        with Engine(store, kv=kv, chunk=chunk, threads=threads, context=2048) as engine:
            return [engine.prefill(prompt[:whole])[0], *(engine.decode(token) for token in prompt[whole:])][-4:]

    baseline = run(256, 1, 1090)
    for options in ((100, 2, 1090), (256, 3, 1097), (7, 2, 1020)):
        for found, expected in zip(run(*options), baseline, strict=True):
            assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), options


def test_prefill_of_a_conversation_continued_equals_prefill_from_the_start(hybrid_store: Path) -> None:
    """A chat's next turn continues the KV cache; rings that have overwritten what is needed start afresh."""
    turn = list(b"and then the sea came in ")
    with Engine(hybrid_store, chunk=8) as engine:
        fresh = {}
        for length in (10, 20, 25):
            engine.prefill([7])  # nothing in common
            fresh[length] = engine.prefill(turn[:length])[0]
        for length, at_least in ((10, 0), (20, 10), (25, 20), (25, 24), (20, 0), (10, 0)):
            logits, reused = engine.prefill(turn[:length])
            assert np.array_equal(logits, fresh[length])
            assert reused >= at_least
