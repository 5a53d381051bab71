"""How many experts may stay when the machine runs short: the decision, without a thread or a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallthinker.host.memory_watch import MIB, Level, levels, margin_bytes, next_target, reserve_bytes, room_bytes

GIB = 1 << 30
counts = st.integers(1, 2000)
sizes = st.integers(0, 64 * GIB)


@given(counts, counts, counts, counts, st.none() | st.integers(-8 * GIB, 64 * GIB), sizes, st.integers(4096, 8 * MIB))
def test_the_target_stays_in_its_bounds_and_shrinks_exactly_when_something_is_missing(
    target: int, held: int, fewest: int, most: int, room: int | None, margin: int, record_bytes: int
) -> None:
    fewest, target, held = min(fewest, most), min(max(target, fewest), most), min(held, most)
    after = next_target(
        target, held=held, fewest=fewest, most=most, room=room, margin=margin, record_bytes=record_bytes
    )
    assert fewest <= after <= most
    if room is None:
        assert after == most
    elif room < 0:
        assert after <= target
        assert after == fewest or (held - after) * record_bytes >= -room
        assert after in (fewest, target) or (held - after - 1) * record_bytes < -room  # no more than is missing
    else:
        assert after >= target
        assert after == target or (after - held) * record_bytes <= room - margin


@given(st.integers(1, 8 * GIB), st.integers(1, 8 * GIB), st.integers(1, 300))
def test_after_pressure_all_slots_come_back_in_steps_and_the_target_never_swings(
    taken: int, free: int, most: int
) -> None:
    record_bytes, margin, target, targets = 2 * MIB, 64 * MIB, most, []
    for hog in (taken, 0):
        for _ in range(40):
            held = target  # the engine fills what it may
            room = free + most * record_bytes - held * record_bytes - hog
            target = next_target(
                target, held=held, fewest=1, most=most, room=room, margin=margin, record_bytes=record_bytes
            )
            targets.append(target)
    squeezed, freed = targets[:40], targets[40:]
    assert squeezed[1:] == sorted(squeezed[1:])  # shrinks once, and never again
    assert freed == sorted(freed)
    if free >= margin + record_bytes:
        assert freed[-1] == most
        assert all(b - a <= max(most // 8, 1) for a, b in zip([squeezed[-1], *freed], freed, strict=False))


@given(sizes, st.integers(1, 64 * GIB), sizes)
def test_what_nobody_else_uses_is_no_pressure_however_full(available: int, total: int, others: int) -> None:
    alone = Level(total, 0, 0)
    assert room_bytes([alone]) is None
    shared = Level(total, available, others + 1)
    assert room_bytes([alone, shared]) == available - reserve_bytes(total)


def test_the_least_room_counts_and_some_is_kept_free() -> None:
    assert room_bytes([Level(16 * GIB, GIB, 1), Level(4 * GIB, 100 * MIB, 1)]) == 100 * MIB - reserve_bytes(4 * GIB)
    assert [reserve_bytes(size) // MIB for size in (0, GIB, 8 * GIB, 1 << 40)] == [32, 32, 245, 512]


def test_this_process_alone_is_not_the_others() -> None:
    machine = levels(0, 0)[0]
    assert levels(machine.others_bytes, 0)[0].others_bytes < machine.others_bytes
    assert 0 < machine.available_bytes < machine.total_bytes


def test_a_large_machine_doesn_t_keep_a_small_cgroup_from_being_filled_again() -> None:
    """What is left free of each counts by its own size: 512 MiB of the machine, 54 of the cgroup."""
    machine, group = Level(24 * GIB, 20 * GIB, GIB), Level(1800 * MIB, 300 * MIB, MIB)
    found = [machine, group]
    target = next_target(
        100, held=100, fewest=4, most=600, room=room_bytes(found), margin=margin_bytes(found), record_bytes=2 * MIB
    )
    assert margin_bytes(found) == reserve_bytes(group.total_bytes)
    assert target > 100
    assert margin_bytes([Level(GIB, 0, 0)]) == 0
