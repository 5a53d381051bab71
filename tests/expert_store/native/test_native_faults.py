"""Native reads of a disk that fails or comes short, on a system that lacks a way of reading, of a file that changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from reading import NATIVE, make_slots
from shimmed import CACHESTAT, GATED

from smallthinker.errors import StoreReadError
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.store import Store


@pytest.mark.parametrize("kind", GATED)
def test_short_and_interrupted_reads_are_continued(kind: str, behind_shim: Callable[..., None]) -> None:
    script = """
with opened_keeper(kind, store, slots, chunk_bytes=1 << 20) as queue:
    for record in range(12):
        queue.submit(record, record)
    assert all(error is None for _, error in hear(queue, 12))
    for record in range(12):
        assert slots[record].tobytes() == record_bytes(store, record)
"""
    behind_shim(script, kind, SHIM_SHORT=4096 if kind == "direct" else 5000, SHIM_EINTR=1)  # 5000: in mid-block


@pytest.mark.parametrize("kind", GATED)
def test_a_broken_block_is_an_error_with_its_byte_and_costs_no_other_record(
    kind: str, store: Store, behind_shim: Callable[..., None]
) -> None:
    broken = store.record_offset(3) + 4096
    behind_shim(
        f"""
with opened_keeper(kind, store, slots, depth=3) as queue:
    for record in range(6):
        queue.submit(record, record)
    told = dict(hear(queue, 6))
    error = told.pop(3)
    assert isinstance(error, StoreReadError)
    assert str(error) == (
        f"{{store.experts_file.path}}: byte {broken}: layers.0.experts.3: cannot read: Input/output error; "
        "check the disk, copy or convert it again"
    ), error
    assert all(error is None for error in told.values())
    assert queue.counters().certain_reads == 5
""",
        kind,
        SHIM_EIO=broken,
    )


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("fault", ["SHIM_EIO", "SHIM_FLIP"])
def test_what_fails_or_is_wrong_once_is_read_again_and_counted(
    kind: str, fault: str, store: Store, behind_shim: Callable[..., None]
) -> None:
    script = """
with opened_keeper(kind, store, slots, depth=3) as queue:
    for record in range(12):
        queue.submit(record, record)
    assert all(error is None for _, error in hear(queue, 12))
    for record in range(12):
        assert slots[record].tobytes() == record_bytes(store, record)
    assert queue.counters().repeated_reads == 1
"""
    behind_shim(script, kind, SHIM_TIMES=1, **{fault: store.record_offset(3) + 4096})


@pytest.mark.parametrize("kind", NATIVE)
def test_older_kernels_read_the_same_bytes(kind: str, behind_shim: Callable[..., None]) -> None:
    script = """
with opened_keeper(kind, store, slots) as queue:
    for record in range(12):
        queue.submit(record, record)
    assert all(error is None for _, error in hear(queue, 12))
    for record in range(12):
        assert slots[record].tobytes() == record_bytes(store, record)
"""
    behind_shim(script, kind, SHIM_NO_SYSCALL=CACHESTAT, SHIM_NO_POPULATE=1)


@pytest.mark.parametrize("kind", NATIVE)
def test_a_file_that_changed_since_the_store_was_opened_is_refused(kind: str, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    size = store.experts_file.file_bytes
    os.truncate(store.experts_file.path, size - 4096)
    with pytest.raises(StoreReadError, match=rf"expected a file of {size} bytes, found {size - 4096}: it changed"):
        NativeQueue(store, make_slots(store, 1), kind, chunk_bytes=4096, depth=1)  # type: ignore[arg-type]
    store.experts_file.path.unlink()
    with pytest.raises(StoreReadError, match=r"experts\.safetensors: cannot open: No such file"):
        NativeQueue(store, make_slots(store, 1), kind, chunk_bytes=4096, depth=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", GATED)
def test_a_model_says_the_same_from_a_disk_that_fails_once_comes_short_or_is_interrupted(
    kind: str, behind_shim: Callable[..., None]
) -> None:
    """And from one that was pulled out it says what can't be read."""
    script = """
from smallthinker.engine import Engine

def said():
    with Engine(sys.argv[1], threads=1, max_slots=4, reader=kind, hot_set=False, context=32) as engine:
        logits = [engine.prefill([1, 2, 3, 4])[0].tobytes(), engine.decode(5).tobytes()]
        global used
        used = int(engine.experts.uses().argmax())
        return logits, engine.experts.counters().repeated_reads

expected, none = said()
assert none == 0
AT = store.record_offset(used)
for times, (fault, value) in enumerate([("SHIM_EIO", AT), ("SHIM_FLIP", AT)], 1):
    os.environ |= {fault: str(value), "SHIM_TIMES": str(times)}
    assert said() == (expected, 1), fault
    del os.environ[fault]
os.environ |= {"SHIM_SHORT": "8192", "SHIM_EINTR": "1"}
assert said() == (expected, 0)
os.environ |= {"SHIM_EIO": str(AT), "SHIM_TIMES": "1000000", "SHIM_SHORT": "0"}
try:
    said()
except StoreReadError as e:
    assert f"byte {AT}: " in str(e) and "Input/output error" in str(e), e
else:
    raise AssertionError("no error")
"""
    behind_shim(script, kind)
