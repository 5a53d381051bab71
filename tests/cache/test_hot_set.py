"""Hot experts beside a store: kept, found again, and never trusted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker import engine
from smallthinker.cache.hot_set import load_hot_set, save_hot_set
from smallthinker.engine import Engine
from smallthinker.expert_store.format import HOT_FILE
from smallthinker.expert_store.store import Store


@pytest.fixture(scope="module")
def store_path(hybrid_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(hybrid_store, tmp_path_factory.mktemp("hot") / "store"))


def chances_of(store: Store) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(0).random(store.num_experts, np.float32)


def test_what_is_kept_is_found_by_the_next_start_and_not_by_another_file(store_path: Path) -> None:
    with Store.open(store_path) as store:
        chances = chances_of(store)
        assert save_hot_set(store, chances)
        np.testing.assert_array_equal(load_hot_set(store), chances)
        assert [path.name for path in store_path.iterdir() if "hot" in path.name] == [HOT_FILE]
        os.utime(store.experts_file.path, ns=(1, 1))
        assert load_hot_set(store) is None


def test_a_place_that_cannot_be_written_is_no_fault(store_path: Path) -> None:
    (store_path / HOT_FILE).unlink(missing_ok=True)
    (store_path / HOT_FILE).mkdir()
    with Store.open(store_path) as store:
        assert not save_hot_set(store, chances_of(store))
    (store_path / HOT_FILE).rmdir()


@given(st.data())
def test_a_damaged_file_is_ignored_or_holds_finite_chances(store_path: Path, data: st.DataObject) -> None:
    with Store.open(store_path) as store:
        save_hot_set(store, chances_of(store))
        path = store_path / HOT_FILE
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        end = data.draw(st.sampled_from([at, len(whole)]))
        path.write_bytes((whole[:at] + data.draw(st.binary(max_size=40)) + whole[at + 1 :])[: max(end, at)])
        found = load_hot_set(store)
        assert found is None or (found.shape == (store.num_experts,) and np.isfinite(found).all())
        path.unlink()
        assert load_hot_set(store) is None


def test_a_second_run_preloads_what_the_first_used_and_writes_the_same(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LEAST_BYTES", 0)
    monkeypatch.setattr(engine, "HOT_TOKENS", 8)

    def run() -> tuple[list[int], int]:
        with Engine(store_path, max_slots=8, context=64) as model:
            preloaded = model.experts.taken  # before any is asked for, whether it has been read by now or not
            logits, _ = model.prefill([1, 2, 3])
            ids = []
            for _ in range(12):
                ids.append(int(logits.argmax()))
                logits = model.decode(ids[-1])
        return ids, preloaded

    (store_path / HOT_FILE).unlink(missing_ok=True)
    first, nothing = run()
    assert (store_path / HOT_FILE).exists()
    second, preloaded = run()
    assert first == second
    assert (nothing, preloaded) == (0, 8)
