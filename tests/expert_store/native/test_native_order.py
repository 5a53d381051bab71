"""Native reads in chunks: who goes first, who gives way, how many are under way, and how they end.

Each script runs behind shim.c, whose gate lets through a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shimmed import GATED


@pytest.mark.parametrize("kind", [*GATED, "paced"])
def test_certain_reads_overtake_speculative_ones_even_half_way(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, verify="never", depth=1) as queue, shut():
    queue.submit(1, 0, speculative=True)
    until(lambda: reading() == 1)  # its first chunk of three
    for slot, record in enumerate((2, 3, 4), 1):
        queue.submit(record, slot, speculative=True)
    queue.submit(5, 4)
    queue.submit(6, 5)
    queue.promote(4)
    let(1 + 3)
    assert hear(queue, 1) == [(5, None)]
    queue.promote(99)
    let(100)
    assert [record for record, _ in hear(queue, 5)] == [6, 4, 1, 2, 3]
    for slot, record in enumerate((1, 2, 3, 4, 5, 6)):
        assert slots[slot].tobytes() == record_bytes(store, record)
    counters = queue.counters()
    assert (counters.certain_reads, counters.speculative_reads) == (3, 3), counters
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_a_read_under_way_stops_at_its_next_chunk_when_cancelled(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, verify="never", depth=1) as queue, shut():
    queue.submit(1, 0)
    until(lambda: reading() == 1)
    queue.submit(2, 1)
    assert queue.cancel(2)  # not started: gone without a word
    assert not queue.cancel(2)
    assert not queue.cancel(1)
    assert not queue.cancel(1)
    let(1)
    (record, error), = queue.wait()
    assert record == 1 and isinstance(error, CancelledError), error
    assert queue.counters().withdrawn_bytes == CHUNK
    # one that gave way half-way has nothing in flight, so it ends at once
    queue.submit(3, 0, speculative=True)
    until(lambda: reading() == 1)
    queue.submit(4, 1)
    let(1)
    until(lambda: queue.counters().busy_sec and reading() == 1)
    assert not queue.cancel(3)
    until(lambda: (told := queue.poll()) and told[0].record == 3 and isinstance(told[0].error, CancelledError))
    let(3)
    assert queue.wait() == [(4, None)]
# the only chunk is under way: the record comes whole
with opened_keeper(kind, store, slots, verify="never", chunk_bytes=WHOLE, depth=1) as queue, shut():
    queue.submit(5, 0)
    until(lambda: reading() == 1)
    assert not queue.cancel(5)
    let(1)
    assert queue.wait() == [(5, None)]
    assert queue.counters().withdrawn_bytes == 0
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_no_more_chunks_are_in_flight_than_allowed(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
with opened_keeper(kind, store, slots, verify="never", chunk_bytes=1 << 20, depth=4, speculative=2) as queue, shut():
    for record in range(3):
        queue.submit(record, record, speculative=True)
    until(lambda: reading() == 2)
    for record in range(3, 6):
        queue.submit(record, record)
    until(lambda: reading() == 4)
    assert queue.cancel(2) and queue.cancel(5)  # those that there was no room for
    let(1)
    told = hear(queue, 1)
    assert reading() <= 3
    let(3)
    told += hear(queue, 3)
    assert sorted(told) == [(record, None) for record in (0, 1, 3, 4)]
    # promotion makes room where speculation had none left
    for record in range(6, 9):
        queue.submit(record, record, speculative=True)
    until(lambda: reading() == 2)
    queue.promote(8)
    until(lambda: reading() == 3)
    let(3)
    assert sorted(hear(queue, 3)) == [(6, None), (7, None), (8, None)]
""",
        kind,
    )


@pytest.mark.parametrize("kind", GATED)
def test_closing_waits_for_the_chunk_under_way_and_for_no_more(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
queue = open_keeper(kind, store, slots, depth=1)
with shut():
    for record in range(5):
        queue.submit(record, record)
    until(lambda: reading() == 1)
    closer = threading.Thread(target=queue.close)
    closer.start()
    while True:  # closing has begun once nothing is taken any more
        try:
            queue.submit(9, 9)
        except StoreReadError:
            break
        except ValueError:
            pass
    assert closer.is_alive()
    let(1)  # a second chunk would wait for ever
    closer.join()
assert queue.counters().withdrawn_bytes == CHUNK
""",
        kind,
    )


def test_ctrl_c_ends_a_wait_and_loses_no_read(behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
main = Path(f"/proc/self/task/{os.getpid()}/stat")
def interrupt():
    until(lambda: all(main.read_text().rsplit(")")[1].split()[0] == "S" for _ in range(50)))
    os.kill(os.getpid(), signal.SIGINT)
with opened_keeper(kind, store, slots, verify="never", depth=1) as queue, shut():
    queue.submit(1, 0)
    threading.Thread(target=interrupt).start()
    try:
        queue.wait()
        raise SystemExit("not interrupted")
    except KeyboardInterrupt:
        pass
    let(3)
    assert queue.wait() == [(1, None)]
"""
    )


@pytest.mark.parametrize("kind", GATED)
def test_a_process_that_ends_with_reads_under_way_ends(kind: str, behind_shim: Callable[..., None]) -> None:
    behind_shim(
        """
queue = open_keeper(kind, store, slots, depth=2)
for record in range(12):
    queue.submit(record, record)
queue.itself = queue  # only the collector, or the end, comes for it
""",
        kind,
    )
