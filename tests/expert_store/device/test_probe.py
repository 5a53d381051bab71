"""What a probe finds, who may trust what was kept of it, and which reader is opened then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import make_slots

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device import cold_reads, disk_profile
from smallthinker.expert_store.device import probe as probing
from smallthinker.expert_store.device.disk_profile import DiskProfile, load_profile, save_profile
from smallthinker.expert_store.format import PROFILE_FILE
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.queues import open_queue
from smallthinker.expert_store.records import Records
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth

MEASURED = DiskProfile("buffered", 8192, 3, 2, 1.5e9, 2e-4, True)


def test_a_probe_measures_and_leaves_no_page_behind(store: Store) -> None:
    profile = probing.probe(store.path, seconds=0.3, least_bytes=0)
    with store.experts_file.path.open("rb") as file:
        left = host.cached_pages(file.fileno(), store.record_offset(0), store.num_experts * store.record_bytes)
    if left is not None and not profile.measured:
        pytest.skip("this file system keeps its pages")
    assert left in (0, None)
    assert profile.measured
    assert profile.chunk_bytes == store.record_bytes  # no chunk is longer than a record
    assert profile.depth in probing.DEPTHS
    assert profile.speculative_depth <= profile.depth
    assert open_queue("auto", store, make_slots(store, 1), profile).name == profile.kind


def test_a_warm_page_cache_is_no_measure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cached_pages", lambda *at: 1)
    assert probing.probe(store, seconds=0.1, least_bytes=0) == DiskProfile()


def test_a_store_too_small_to_measure_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_reads, "NativeQueue", None)
    assert probing.probe(store) == DiskProfile()
    assert probing.profile_of(store) == DiskProfile()
    assert not (store.path / PROFILE_FILE).exists()


def test_without_direct_reads_the_page_cache_is_measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDirectReads(NativeQueue):
        def __init__(self, store: Store, slots: Any, kind: Any, **settings: int) -> None:
            if kind == "direct":
                raise StoreReadError("no direct reads")
            super().__init__(store, slots, kind, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(cold_reads, "NativeQueue", NoDirectReads)
    monkeypatch.setattr(host, "open_direct", lambda path: None)
    profile = probing.probe(store, seconds=0.3, least_bytes=0)
    assert profile.kind in (("buffered", "mmap") if profile.measured else ("direct",))


class SlowDisk:
    """A clock that little but reads moves, at so many bytes a second."""

    def __init__(self, bytes_per_sec: float) -> None:
        self.now, self.bytes_per_sec = 100.0, bytes_per_sec

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.mark.parametrize("megabytes_per_sec", [20, 150, 1000, 20000])
def test_a_probe_of_a_slow_disk_is_over_in_time(
    megabytes_per_sec: int, tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(megabytes_per_sec * 1e6)

    class Queue:
        """Takes the time of what it is given, two megabytes a record."""

        def __init__(self, store: Store, *_: object, **__: object) -> None:
            self.under_way: list[int] = []

        def submit(self, record: int, slot: int) -> None:
            self.under_way.append(record)

        def wait(self) -> list[tuple[int, None]]:
            disk.now += 490 * 4096 / disk.bytes_per_sec
            return [(self.under_way.pop(0), None)]

        def close(self) -> None: ...

    class BigStore:
        """Records of two megabytes; nobody reads them."""

        num_experts, record_bytes, is_compressed = 1000, 490 * 4096, False
        experts_file = Store.open(synth(str(tiny_config), tmp_path / "store", "q4_0")).experts_file

        def plain_records(self) -> Records:
            path, nbytes = self.experts_file.path, self.experts_file.file_bytes
            return Records.in_turn(path, nbytes, 0, self.record_bytes, self.num_experts)

    monkeypatch.setattr(probing, "time", disk)
    monkeypatch.setattr(cold_reads, "time", disk)
    monkeypatch.setattr(cold_reads, "NativeQueue", Queue)
    monkeypatch.setattr(host, "cached_pages", lambda *at: 0)
    monkeypatch.setattr(probing, "Store", BigStore)
    profile = probing.probe(BigStore())  # type: ignore[arg-type]
    assert disk.now - 100.0 < 3.0
    assert profile.measured
    assert profile.bandwidth_bytes_per_sec == pytest.approx(disk.bytes_per_sec, rel=0.05)
    assert profile.kind == "direct" and profile.chunk_bytes in (*probing.CHUNKS, BigStore.record_bytes)
    if megabytes_per_sec > 20:  # the slowest leaves no time for every size and depth, and chance says for which
        assert (profile.depth, profile.speculative_depth) == (1, 1)


def trial(kind: str, chunk: int, depth: int, *samples: float) -> Any:
    return probing._Trial(kind, chunk, depth, list(samples))  # type: ignore[arg-type]


def test_the_least_in_flight_of_what_is_about_as_fast_wins() -> None:
    slow, small, large, deep = (
        trial("direct", 1, 1, 80.0),
        trial("direct", 1, 2, 96.0, 1.0, 97.0),  # one bad moment is no measure
        trial("direct", 2, 2, 97.0),
        trial("direct", 2, 8, 100.0),
    )
    assert probing.choose([deep, large, small, slow]) is small
    assert probing.choose([deep, slow, trial("direct", 1, 1)]) is deep
    assert probing.choose([]) is None
    assert probing.choose([trial("direct", 1, 1)]) is None


@pytest.mark.parametrize(
    ("buffered", "mapped", "winner"),
    [(129.0, 120.0, "direct"), (131.0, 100.0, "buffered"), (131.0, 140.0, "mmap"), (90.0, 90.0, "direct")],
)
def test_another_kind_must_be_faster_by_more_than_it_costs(buffered: float, mapped: float, winner: str) -> None:
    trials = [trial("direct", 1, 1, 100.0), trial("buffered", 1, 1, buffered), trial("mmap", 1, 1, mapped)]
    chosen = probing.choose_kind([*trials, trial("buffered", 1, 1)])
    assert chosen is not None
    assert chosen.kind == winner
    assert probing.choose_kind([trial("direct", 1, 1), *trials[1:]]) is None


@pytest.fixture
def own_store(tiny_store: Path) -> Iterator[Store]:
    with Store.open(tiny_store) as store:
        yield store


def test_a_profile_is_measured_once_and_kept(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Store] = []
    monkeypatch.setattr(probing, "probe", lambda store: asked.append(store) or MEASURED)
    assert probing.profile_of(own_store) == probing.profile_of(own_store) == MEASURED
    assert len(asked) == 1
    assert [path.name for path in own_store.path.iterdir() if "profile" in path.name] == [PROFILE_FILE]
    Store.open(own_store.path).verify()  # the file disturbs nobody


def test_a_kept_profile_does_not_keep_a_store_from_being_replaced(own_store: Store, tiny_config: Path) -> None:
    assert save_profile(own_store, MEASURED)
    (own_store.path / f".{PROFILE_FILE}.0123").touch()  # a process was killed while it wrote
    again = synth(str(tiny_config), own_store.path, "q4_0", force=True)
    assert load_profile(Store.open(again)) is None


def test_another_file_machine_or_kernel_is_measured_anew(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert save_profile(own_store, MEASURED)
    assert load_profile(own_store) == MEASURED
    with monkeypatch.context() as patch:
        patch.setattr(host, "cpu_name", lambda: "another")
        assert load_profile(own_store) is None
    with monkeypatch.context() as patch:
        patch.setattr(disk_profile, "_FORMAT", 0)
        assert load_profile(own_store) is None
    own_store.experts_file.path.touch()
    assert load_profile(own_store) is None


def test_a_folder_that_cannot_be_written_keeps_no_profile(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    assert not save_profile(own_store, MEASURED)
    assert load_profile(own_store) is None
    assert not [path for path in own_store.path.iterdir() if "profile" in path.name]


def hostile(profile: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, values in {
        "kind": ["tape", 1, None, ["direct"]],
        "chunk_bytes": [0, -4096, 5000, 1 << 40, 4096.0, "4096", True],
        "depth": [0, 65, 1.0, "1", True],
        "speculative_depth": [0, 4],
        "bandwidth_bytes_per_sec": [0, -1.0, float("nan"), float("inf"), "1", True],
        "latency_sec": [0, float("nan"), None],
        "measured": [1, None],
    }.items():
        for value in values:
            yield profile | {name: value}
    yield profile | {"more": 1}
    yield {name: value for name, value in profile.items() if name != "depth"}


@pytest.mark.parametrize("values", list(hostile(MEASURED.to_dict())), ids=str)
def test_a_profile_that_no_queue_would_take_is_ignored(values: dict[str, Any], own_store: Store) -> None:
    assert save_profile(own_store, MEASURED)
    path = own_store.path / PROFILE_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"profile": values}))
    assert load_profile(own_store) is None
    with pytest.raises(ValueError, match="expected"):
        DiskProfile.from_dict(values)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"key": 1, "profile": 2}', "[" * 60000, '{"a": 1}' + " " * 70000, "\udcff"],
    ids=lambda text: text[:10],
)
def test_a_profile_that_is_none_is_ignored(text: str, own_store: Store) -> None:
    (own_store.path / PROFILE_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert load_profile(own_store) is None
    huge = f'{{"key": {json.dumps(disk_profile._key(own_store))}, "profile": {{"latency_sec": {10**400}}}}}'
    (own_store.path / PROFILE_FILE).write_text(huge)
    assert load_profile(own_store) is None
    content = {"key": disk_profile._key(own_store), "profile": 3}
    (own_store.path / PROFILE_FILE).write_text(json.dumps(content))
    assert load_profile(own_store) is None


@given(
    kind=st.sampled_from(["direct", "mmap", "buffered"]),
    blocks=st.integers(1, 1 << 18),
    depths=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    figures=st.tuples(st.floats(1e-9, 1e12), st.floats(1e-9, 1e12)),
)
def test_profiles_survive_json(kind: Any, blocks: int, depths: tuple[int, int], figures: tuple[float, float]) -> None:
    profile = DiskProfile(kind, blocks * 4096, max(depths), min(depths), *figures, True)
    assert DiskProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize("kind", ["direct", "mmap", "buffered"])
def test_queues_open_by_name_or_by_the_profile(kind: Any, store: Store) -> None:
    try:
        queue = open_queue(kind, store, make_slots(store, 1))
    except StoreReadError as e:
        pytest.skip(str(e))
    assert queue.name == kind
    queue.close()
    queue = open_queue("auto", store, make_slots(store, 1), replace(MEASURED, kind=kind))
    assert queue.name == kind
    queue.close()
    with pytest.raises(ValueError, match="one of auto, direct, mmap, buffered, found 'tape'"):
        open_queue("tape", store, make_slots(store, 1))  # type: ignore[arg-type]


def test_where_the_profiles_kind_is_refused_ordinary_reads_are_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = NativeQueue.__init__

    def refuse(self: NativeQueue, store: Store, slots: Any, kind: Any, **settings: Any) -> None:
        if kind == "direct":
            raise StoreReadError("no direct reads")
        whole(self, store, slots, kind, **settings)

    monkeypatch.setattr(NativeQueue, "__init__", refuse)
    assert open_queue("auto", store, make_slots(store, 1)).name == "buffered"
    with pytest.raises(StoreReadError, match="no direct reads"):
        open_queue("direct", store, make_slots(store, 1))
