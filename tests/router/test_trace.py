"""Trace files: a round trip, and nothing believed that a hostile file says. Figures of a routing known by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.errors import StoreFormatError, StoreReadError, StoreWriteError
from smallthinker.router.trace import Trace, expert_use, load_trace, save_trace, usage


def random_trace(seed: int = 0, tokens: int = 7, layers: int = 3, experts: int = 9, k: int = 2) -> Trace:
    rng = np.random.default_rng(seed)
    probs = rng.random((tokens, layers, experts)).astype(np.float16)
    ids = np.argsort(-probs, axis=2)[:, :, :k].astype(np.uint8 if experts <= 256 else np.uint16)
    starts = np.unique(np.r_[0, rng.integers(0, tokens, 2)])
    return Trace(ids, probs, starts, 4096, "a model")


@given(
    seed=st.integers(0, 99),
    tokens=st.integers(1, 20),
    layers=st.integers(1, 4),
    experts=st.sampled_from([1, 5, 256, 257, 300]),
)
def test_a_trace_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tokens: int, layers: int, experts: int
) -> None:
    path = tmp_path_factory.mktemp("trace") / "file"
    trace = random_trace(seed, tokens, layers, experts, min(experts, 3))
    save_trace(trace, path)
    loaded = load_trace(path)
    for name in ("ids", "probs", "starts"):
        assert np.array_equal(getattr(trace, name), getattr(loaded, name))
        assert getattr(trace, name).dtype == getattr(loaded, name).dtype
    assert (loaded.record_bytes, loaded.model) == (4096, "a model")
    assert (loaded.tokens, loaded.layers, loaded.experts) == (tokens, layers, experts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_trace(random_trace(), tmp_path / "file")
    return tmp_path / "file"


def refused(path: Path, match: str) -> None:
    with pytest.raises(StoreFormatError, match=match) as caught:
        load_trace(path)
    assert str(path) in str(caught.value)


def test_a_trace_cut_anywhere_or_longer_is_refused(path: Path) -> None:
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        refused(path, "expected")
    path.write_bytes(raw + b"\0")
    refused(path, "end of the last tensor")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("tensor", "key", "value", "match"),
    [
        ("ids", "shape", [2**40, 3, 2], "data_offsets"),
        ("ids", "shape", [7, 2, 3], "shapes of ids and probs"),
        ("ids", "shape", [7, 6], "sizes above 0"),
        ("ids", "dtype", "I8", "U8 or U16"),
        ("probs", "dtype", "BF16", "F16"),
        ("__metadata__", "format", "smallthinker-store", "__metadata__ format"),
        ("__metadata__", "format_version", "9", "__metadata__ format"),
        ("__metadata__", "record_bytes", "0", "record_bytes"),
        ("__metadata__", "record_bytes", "-5", "record_bytes"),
        ("__metadata__", "record_bytes", "9" * 5000, "record_bytes"),
        ("__metadata__", "record_bytes", "٣", "record_bytes"),
    ],
)
def test_headers_that_lie_are_refused(path: Path, tensor: str, key: str, value: object, match: str) -> None:
    rewrite(path, lambda header: header[tensor].__setitem__(key, value))
    refused(path, match)


def test_missing_and_unknown_tensors_are_refused(path: Path) -> None:
    rewrite(path, lambda header: header.__setitem__("tokens", header.pop("starts")))
    refused(path, "tensors: expected ids, probs, starts")


def with_values(path: Path, **arrays: np.ndarray) -> None:
    trace = random_trace()
    values = {"ids": trace.ids, "probs": trace.probs, "starts": trace.starts} | arrays
    save_trace(Trace(**values, record_bytes=4096, model=""), path)


def changed(array: np.ndarray, at: tuple[int, ...], value: float) -> np.ndarray:
    copy = array.copy()
    copy[at] = value
    return copy


def test_values_that_no_router_gives_are_refused(path: Path) -> None:
    trace = random_trace()
    with_values(path, ids=changed(trace.ids, (1, 1, 1), 9))
    refused(path, "experts from 0 to 8, found 9")
    with_values(path, ids=changed(trace.ids, (1, 1, 1), trace.ids[1, 1, 0]))
    refused(path, "2 distinct experts")
    for value in (np.nan, np.inf, -0.5, 1.5):
        with_values(path, probs=changed(trace.probs, (0, 0, 0), value))
        refused(path, "numbers from 0 to 1")
    for starts in ([1], [0, 0], [0, 7], [0, -1], [0, 3, 2]):
        with_values(path, starts=np.array(starts, np.int64))
        refused(path, "starts: expected ascending")


def test_files_that_cannot_be_read_or_written_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreReadError, match="cannot read the trace"):
        load_trace(tmp_path / "none")
    with pytest.raises(StoreWriteError, match="cannot write the trace"):
        save_trace(random_trace(), tmp_path / "no" / "folder")


def test_figures_of_a_small_routing() -> None:
    ids = np.array([[[0, 1]], [[1, 2]], [[1, 2]], [[2, 3]]], np.uint8)  # the third token begins a sequence
    assert expert_use(ids, 4).tolist() == [[0.25, 0.75, 0.75, 0.25]]
    use = usage(ids, np.array([0, 2]), 4)
    assert use == (0.0, 0.75, 0.75, 0.25, 0.5, 0.5)  # 1 of 2 in common, twice
    assert usage(ids[:1], np.array([0]), 4).repeated is None
