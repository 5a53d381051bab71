from __future__ import annotations

import copy
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import ENVIRONMENT, made_up, run, write

from smallthinker.benchmark.matrix import Cell
from smallthinker.benchmark.results import Results, begin, read_results
from smallthinker.errors import ResultsError

MIB = 1 << 20


def fail(notice: str) -> None:
    raise AssertionError(notice)


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    with begin(tmp_path, ENVIRONMENT, force=False, notice=fail) as results:
        results.append(run(100, "raw", 0, 5.0))
    found = read_results(tmp_path, fail)
    assert found.rows == [run(100, "raw", 0, 5.0)]
    assert found.environment == ENVIRONMENT
    assert found.has_run(Cell(100 * MIB, "raw", 32), 0) and not found.has_run(Cell(100 * MIB, "raw", 32), 1)


@given(cut=st.integers(1, 400))
def test_a_last_line_that_was_cut_off_is_removed_and_said(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = folder / "results.jsonl"
    made_up(path, memory_mib=(100,), profiles=("raw",))
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][: min(cut, len(whole[-1]) - 1)])
    said: list[str] = []
    assert len(read_results(folder, said.append).rows) == len(whole) - 2
    with begin(folder, ENVIRONMENT, force=False, notice=said.append) as results:
        results.append(run(100, "raw", 7, 5.0))
    assert len(said) == 2 and all("cut off" in notice for notice in said)
    assert read_results(folder, fail).rows[-1]["repeat"] == 7


def test_results_of_another_commit_are_not_mixed_in(tmp_path: Path) -> None:
    made_up(tmp_path / "results.jsonl")
    other = copy.deepcopy(ENVIRONMENT)
    other["machine"]["commit"] = "fedcba9"
    with pytest.raises(ResultsError, match="machine's commit is '0123456', now 'fedcba9'"):  # noqa: SIM117
        with begin(tmp_path, other, force=False, notice=fail):
            pass
    said: list[str] = []
    with begin(tmp_path, other, force=True, notice=said.append) as results:
        assert results.rows == []
    assert "commit" in said[0]


def test_a_profile_that_comes_later_is_noted_and_one_with_other_figures_refused(tmp_path: Path) -> None:
    made_up(tmp_path / "results.jsonl")
    more = copy.deepcopy(ENVIRONMENT)
    more["profiles"] = {"mine": more["profiles"]["emmc"] | {"name": "mine"}}
    with begin(tmp_path, more, force=False, notice=fail):
        pass
    assert set(read_results(tmp_path, fail).environment["profiles"]) == {"emmc", "mine"}
    more["profiles"]["mine"]["latency_sec"] = 0.5
    with pytest.raises(ResultsError, match="profile 'mine' has other figures"):  # noqa: SIM117
        with begin(tmp_path, more, force=False, notice=fail):
            pass


def test_two_benchmarks_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with begin(tmp_path, ENVIRONMENT, force=False, notice=fail), pytest.raises(ResultsError, match="another benchmark"):  # noqa: SIM117
        with begin(tmp_path, ENVIRONMENT, force=False, notice=fail):
            pass


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in a tree of dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, item in items for found in paths(item, (*at, key)))]


VALID = [ENVIRONMENT, run(100, "raw", 0, 5.0)]
SPOTS = [(n, path) for n, row in enumerate(VALID) for path in paths(row) if path]
JUNK = st.sampled_from(
    [None, -1, 1e300, True, "", "x" * 5000, [], {}, [[]], {"$ref": "#"}, "<script>", -0.5, float("inf"), float("nan")]
)


@given(spot=st.sampled_from(SPOTS), junk=JUNK, drop=st.booleans())
def test_a_file_with_anything_in_any_field_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, spot: tuple[int, tuple[Any, ...]], junk: Any, drop: bool
) -> None:
    rows = copy.deepcopy(VALID)
    number, path = spot
    parent: Any = rows[number]
    for key in path[:-1]:
        parent = parent[key]
    if drop:
        del parent[path[-1]]
    else:
        parent[path[-1]] = junk
    file = tmp_path_factory.mktemp("junk") / "results.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ""
    try:
        read_results(file, fail)
    except ResultsError as e:
        said = str(e)
    assert said == "" or (str(file) in said and "\n" not in said and len(said) < 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].pop("profile"), "line 2.*'profile' is a required property"),
        (lambda rows: rows[1]["answers"][0].update(ttft_sec=-1), r"line 2: answers.0.ttft_sec"),
        (lambda rows: rows[1]["answers"][0].update(ttft_sec=float("nan")), "NaN is no number"),
        (lambda rows: rows[1].update(host="mine"), "'host' was unexpected"),
        (lambda rows: rows.pop(0), "line 1: expected one line of kind environment"),
        (lambda rows: rows.append(rows[0]), "line 3: expected one line of kind environment"),
        (lambda rows: rows.clear(), "found no whole line"),
    ],
)
def test_what_the_schema_does_not_allow_is_named(tmp_path: Path, change: Any, message: str) -> None:
    rows = copy.deepcopy(VALID)
    change(rows)
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ResultsError, match=message):
        read_results(file, fail)


def test_dropping_rows_keeps_the_others_as_they_were(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    results.keep(lambda row: row["kind"] == "run" and row["profile"] == "raw")
    found = read_results(tmp_path, fail)
    assert found.rows == results.rows and {row["profile"] for row in found.rows} == {"raw"}
    write(Results(tmp_path / "again.jsonl", found.environment, found.rows))
    assert read_results(tmp_path / "again.jsonl", fail).rows == found.rows


def test_a_full_disk_leaves_the_results_as_they_were(tmp_path: Path) -> None:
    """A limit on a file's size is what any process has of a full disk."""
    with begin(tmp_path, ENVIRONMENT, force=False, notice=fail) as results:
        results.append(run(100, "raw", 0, 5.0))
        before = results.path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            with pytest.raises(ResultsError, match="cannot write: File too large"):
                results.append(run(100, "raw", 1, 5.0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 100, hard))
            with pytest.raises(ResultsError, match="cannot write: File too large"):
                results.keep(lambda _: True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
    assert results.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert read_results(tmp_path, fail).rows == results.rows == [run(100, "raw", 0, 5.0)]
