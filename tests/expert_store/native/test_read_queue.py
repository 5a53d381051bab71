"""The contract of background reading, held by whatever keeps it."""

from __future__ import annotations

import gc
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forking import in_child
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import KEEPERS, NATIVE, make_cold, make_slots, needs_proc, open_keeper, opened_keeper, record_bytes

from smallthinker import host
from smallthinker.errors import CancelledError, ForkedError, StoreReadError
from smallthinker.expert_store.read_queue import FinishedRead, ReadQueue
from smallthinker.expert_store.store import Store


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize(("depth", "chunk"), [(1, 4096), (3, 4096), (4, 1 << 20), (2, 8192)])
@pytest.mark.parametrize("kind", KEEPERS)
def test_every_record_is_the_files_bytes_in_any_order(
    kind: str, depth: int, chunk: int, is_cold: bool, store: Store
) -> None:
    order = random.Random(depth).sample(range(store.num_experts), store.num_experts)
    slots = make_slots(store, store.num_experts)
    if is_cold:
        make_cold(store)
    with opened_keeper(kind, store, slots, chunk_bytes=chunk, depth=depth) as queue:
        for slot, record in enumerate(order):
            queue.submit(record, slot, speculative=slot % 3 == 0)
        told: list[FinishedRead] = []
        while len(told) < len(order):
            told += queue.wait()
        assert sorted(told) == [(record, None) for record in range(store.num_experts)]
        counters = queue.counters()
        assert counters.certain_reads + counters.speculative_reads == len(order)
        assert counters.speculative_reads == len(range(0, len(order), 3))
        assert counters.speculative_bytes == counters.speculative_reads * store.record_bytes
        assert counters.certain_bytes == counters.certain_reads * store.record_bytes
        assert counters.withdrawn_bytes == 0
        assert counters.busy_sec > 0
    for slot, record in enumerate(order):
        assert slots[slot].tobytes() == record_bytes(store, record)


@needs_proc
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kind", KEEPERS)
def test_a_forked_process_can_neither_use_nor_harm_a_queue(kind: str, store: Store) -> None:
    def use() -> list[str]:
        queue, said = only.pop(), []
        for call in (
            partial(queue.submit, 9, 9),
            partial(queue.promote, 1),
            partial(queue.cancel, 1),
            queue.poll,
            queue.wait,
            queue.drain,
            queue.counters,
        ):
            with pytest.raises(ForkedError) as caught:
                call()
            said.append(str(caught.value))
        queue.close()
        del call, queue  # the last that is known of it
        gc.collect()
        return said

    slots = make_slots(store, 10)
    only = [open_keeper(kind, store, slots)]
    for record in range(8):
        only[0].submit(record, record, speculative=record % 2 == 0)
    assert in_child(use).count("forked") == 7
    told: list[FinishedRead] = []
    while len(told) < 8:
        told += only[0].wait()
    only[0].close()
    assert sorted(told) == [(record, None) for record in range(8)]
    assert all(slots[record].tobytes() == record_bytes(store, record) for record in range(8))


@pytest.mark.parametrize("kind", NATIVE)
def test_nothing_stays_in_the_page_cache_that_was_not_there(kind: str, store: Store) -> None:
    slots = make_slots(store, 4)
    with store.experts_file.path.open("rb") as file, opened_keeper(kind, store, slots) as queue:
        whole = file.fileno(), store.record_offset(0), store.num_experts * store.record_bytes
        make_cold(store)
        if host.cached_pages(*whole) != 0:
            pytest.skip("this system doesn't say what its page cache holds, or keeps it")
        for slot, record in enumerate((0, 7, 8, store.num_experts - 1)):
            queue.submit(record, slot)
            queue.wait()
        assert host.cached_pages(*whole) == 0
        os.pread(file.fileno(), store.record_bytes, store.record_offset(7))
        was_there = host.cached_pages(*whole)
        queue.submit(7, 0)
        queue.wait()
        assert host.cached_pages(*whole) == was_there
    assert slots[0].tobytes() == slots[1].tobytes() == record_bytes(store, 7)


@pytest.mark.parametrize("kind", KEEPERS)
def test_with_nothing_under_way_there_is_nothing_to_wait_for(kind: str, store: Store) -> None:
    with opened_keeper(kind, store, make_slots(store, 1)) as queue:
        with pytest.raises(ValueError, match="no read is under way"):
            queue.wait()
        assert queue.poll() == []
        assert not queue.cancel(0)
        queue.promote(0)
        queue.drain()
        queue.submit(3, 0)
        assert queue.wait() == [(3, None)]
        with pytest.raises(ValueError, match="no read is under way"):
            queue.wait()


@pytest.mark.parametrize("kind", KEEPERS)
def test_records_and_slots_out_of_range_or_under_way_are_refused(kind: str, store: Store) -> None:
    with opened_keeper(kind, store, make_slots(store, 2)) as queue:
        for record, slot in ((-1, 0), (store.num_experts, 0), (0, -1), (0, 2), (1 << 62, 0), (0, -(1 << 62))):
            with pytest.raises(IndexError, match="expected 0 to"):
                queue.submit(record, slot)
        queue.submit(4, 1)  # under way until its end is told, so that no timing has a say
        with pytest.raises(ValueError, match="record 4 is under way already"):
            queue.submit(4, 0)
        with pytest.raises(ValueError, match="slot 1: record 4 is being read into it"):
            queue.submit(5, 1)
        assert queue.wait() == [(4, None)]
        queue.submit(4, 1)
        assert queue.wait() == [(4, None)]


@pytest.mark.parametrize("kind", KEEPERS)
def test_after_a_drain_nothing_writes_and_nothing_is_told(kind: str, store: Store) -> None:
    slots = make_slots(store, store.num_experts)
    with opened_keeper(kind, store, slots, depth=3) as queue:
        for record in range(store.num_experts):
            queue.submit(record, record, speculative=record % 2 == 0)
        queue.drain()
        slots[:] = 0xEE
        assert queue.poll() == []
        with pytest.raises(ValueError, match="no read is under way"):
            queue.wait()
        queue.submit(0, 1)
        assert queue.wait() == [(0, None)]
        assert (slots[[0, *range(2, len(slots))]] == 0xEE).all()


@pytest.mark.parametrize("kind", KEEPERS)
def test_a_closed_queue_is_quiet_and_takes_nothing_more(kind: str, store: Store) -> None:
    slots = make_slots(store, store.num_experts)
    queue = open_keeper(kind, store, slots)
    for record in range(store.num_experts):
        queue.submit(record, record)
    queue.close()
    queue.close()
    slots[:] = 0xEE
    assert queue.poll() == []
    assert not queue.cancel(1)
    queue.promote(1)
    queue.drain()
    with pytest.raises(ValueError, match="no read is under way"):
        queue.wait()
    with pytest.raises(StoreReadError, match="closed"):
        queue.submit(0, 0)
    assert queue.counters().certain_reads == 0
    assert (slots == 0xEE).all()


@pytest.mark.parametrize("kind", KEEPERS)
def test_an_error_names_the_byte_and_the_other_reads_go_on(kind: str, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    last = store.num_experts - 1
    with opened_keeper(kind, store, make_slots(store, store.num_experts), depth=1) as queue:
        with store.experts_file.path.open("r+b") as file:
            file.truncate(store.record_offset(last) + 5000)  # in the second block of the last record
        queue.submit(last, last)
        queue.submit(0, 0)
        told = dict(queue.wait())
        while len(told) < 2:
            told |= dict(queue.wait())
        error = told[last]
        assert isinstance(error, StoreReadError)
        assert str(store.experts_file.path) in str(error)
        if kind == "mmap":  # looks at the file's size before each touch, so the intact record isn't read either
            assert f"byte {store.record_offset(0)}: layers.0.experts.0: expected a file of" in str(told[0])
        else:
            assert told[0] is None
        at = store.record_offset(last) + (0 if kind == "mmap" else 4096)
        size = store.experts_file.file_bytes
        found = store.record_offset(last) + 5000
        name = "" if kind == "staged" else f"{store.experts_file.tensors[last].spec.name}: "
        assert f"byte {at}: {name}expected a file of {size} bytes, found {found}: it changed since" in str(error)
        assert queue.counters().certain_reads == (0 if kind == "mmap" else 1)


@needs_proc
@pytest.mark.parametrize("kind", KEEPERS)
def test_threads_and_files_go_with_the_queue(kind: str, store: Store) -> None:
    def held() -> list[int]:
        return [len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task")]

    slots = make_slots(store, 8)
    open_keeper(kind, store, slots).close()
    before = held()
    for i in range(20):
        queue = open_keeper(kind, store, slots, depth=4)
        for record in range(8):
            queue.submit(record, record)
        if i % 2:
            queue.close()
        del queue  # closed by the collector where we didn't
    for _ in range(100_000):  # a thread that was joined is listed for a moment longer, `before` may count one as well
        now = held()
        if now[0] <= before[0] and now[1] <= before[1]:
            break
    assert now[0] <= before[0] and now[1] <= before[1], (now, before)


class Account:
    """What is under way, beside a queue that is told the same."""

    NUM_SLOTS = 6

    def __init__(self, kind: str, store: Store, depth: int, chunk_bytes: int, speculative: int) -> None:
        self.store = store
        self.slots = make_slots(store, self.NUM_SLOTS)
        self.slots[:] = 0xEE
        self.queue: ReadQueue = open_keeper(
            kind, store, self.slots, chunk_bytes=chunk_bytes, depth=depth, speculative=min(speculative, depth)
        )
        self.slot_of: dict[int, int] = {}
        self.withdrawn: set[int] = set()
        self.told = 0

    def submit(self, record: int, slot: int, speculative: bool) -> None:
        if record in self.slot_of or slot in self.slot_of.values():
            with pytest.raises(ValueError, match=r"under way already|is being read into it"):
                self.queue.submit(record, slot, speculative)
            return
        self.queue.submit(record, slot, speculative)
        self.slot_of[record] = slot
        self.withdrawn.discard(record)

    def promote(self, record: int) -> None:
        self.queue.promote(record)

    def cancel(self, record: int) -> None:
        if record not in self.slot_of:
            assert not self.queue.cancel(record)
        elif self.queue.cancel(record):
            assert record not in self.withdrawn
            assert (self.slots[self.slot_of.pop(record)] == 0xEE).all()
        else:
            self.withdrawn.add(record)

    def poll(self) -> None:
        self.hear(self.queue.poll())

    def wait(self) -> None:
        if self.slot_of:
            told = self.queue.wait()
            assert told
            self.hear(told)
        else:
            with pytest.raises(ValueError, match="no read is under way"):
                self.queue.wait()

    def drain(self) -> None:
        self.queue.drain()
        self.slot_of.clear()
        self.slots[:] = 0xEE
        assert self.queue.poll() == []

    def hear(self, told: list[FinishedRead]) -> None:
        for record, error in told:
            slot = self.slot_of.pop(record)  # KeyError: told twice, or never asked for
            if error is None:
                self.told += 1
                assert self.slots[slot].tobytes() == record_bytes(self.store, record)
            else:
                assert isinstance(error, CancelledError)
                assert record in self.withdrawn
            self.slots[slot] = 0xEE

    def check(self) -> None:
        idle = sorted(set(range(self.NUM_SLOTS)) - set(self.slot_of.values()))
        assert (self.slots[idle] == 0xEE).all()  # nobody reads into them

    def finish(self) -> None:
        while self.slot_of:
            self.wait()
        counters = self.queue.counters()
        self.queue.close()
        assert counters.certain_reads + counters.speculative_reads == self.told
        assert counters.certain_bytes + counters.speculative_bytes == self.told * self.store.record_bytes
        self.check()


RECORD = st.integers(0, 9)  # few, so that operations meet
OPERATION = st.one_of(
    st.tuples(st.just("submit"), RECORD, st.integers(0, Account.NUM_SLOTS - 1), st.booleans()),
    st.tuples(st.sampled_from(["promote", "cancel"]), RECORD),
    st.tuples(st.sampled_from(["poll", "poll", "wait", "wait", "drain"])),
)


@pytest.mark.parametrize("kind", KEEPERS)
@settings(max_examples=80)
@given(
    depth=st.integers(1, 4),
    speculative=st.integers(1, 4),
    chunk=st.sampled_from([4096, 8192, 1 << 20]),
    operations=st.lists(OPERATION, max_size=100),
)
def test_any_operations_in_any_order_agree_with_a_plain_account(
    kind: str, store: Store, depth: int, speculative: int, chunk: int, operations: list[tuple[Any, ...]]
) -> None:
    account = Account(kind, store, depth, chunk, speculative)
    try:
        for name, *arguments in operations:
            getattr(account, name)(*arguments)
            account.check()
        account.finish()
    finally:
        account.queue.close()


def test_the_stores_records_have_several_chunks(store: Store) -> None:
    assert store.record_bytes == 3 * 4096  # what the tests above count on
    assert store.num_experts == 48
    assert len({record_bytes(store, i) for i in range(48)}) == 48
