"""`--csv` and `--plot` as reviewers of storage use them."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker.cli import main
from smallthinker.expert_store.device import device_probe
from smallthinker.expert_store.device.device_probe import DEPTHS, KINDS, REQUESTS, DeviceReport, Point
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.models.registry import to_config
from smallthinker.router.trace import Trace, save_trace

Row = dict[str, str]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40, 3, 8)), axis=2)[:, :, :2].astype(np.uint8)
    probs = np.full((40, 3, 8), 0.25, np.float16)
    save_trace(Trace(ids, probs, np.array([0, 20]), 1 << 16, "a $\\frac{model$"), tmp_path / "trace")
    return tmp_path / "trace"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, and a probe that needs no time."""
    profile = load_profile("ufs")
    points = [
        Point(kind, size, depth, tuple(x * profile.bytes_per_sec(size, depth) for x in (0.9, 1.0, 1.2)))
        for kind in KINDS for size in REQUESTS for depth in DEPTHS
    ]  # fmt: skip
    report = DeviceReport(tuple(points), profile, 0.1, 16 << 20, None)
    monkeypatch.setattr(device_probe, "probe_device", lambda *_, **__: report)
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 << 20))
    return path


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[Row]:
    assert main([*map(str, arguments), "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_cache_sim_has_a_line_for_each_size_and_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "cache-sim", trace, "--slots", 4, 12)
    assert [row["policy"] for row in found].count("optimum") == 2 and {row["slots"] for row in found} == {"4", "12"}
    assert main(["cache-sim", str(trace), "--slots", "4", "12", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    assert float(found[0]["hit_rate"]) == sizes[0]["hit_rates"][found[0]["policy"]]


def test_plan_has_a_line_for_each_budget_and_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_config(tiny_config(**HYBRID_ATTENTION))))
    short = ["--prompt", 16, "--max-tokens", 8, "--storage", "emmc", "--memory", "4000MiB", "5000MiB"]
    found = rows(capsys, "plan", config, *short, "--plot", tmp_path / "plan.svg")
    assert [(row["memory_bytes"], row["answer"]) for row in found] == [
        (str(mib << 20), answer) for mib in (4000, 5000) for answer in ("first", "later")
    ]
    for row in found:
        assert 0 < float(row["decode_tok_per_sec"]) <= float(row["decode_roofline_tok_per_sec"])
        assert row["decode_limit"] in ("disk", "memory", "compute") and float(row["ttft_sec"]) > 0
    drawing = (tmp_path / "plan.svg").read_text()
    assert all(part in drawing for part in ("KV cache", "dense weights", "later ones", "3.906 GiB"))


def test_a_probe_has_runs_and_their_spread(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "probe", disk, "--plot", tmp_path / "disk.svg")
    assert len(found) == len(KINDS) * len(REQUESTS) * len(DEPTHS) and {row["runs"] for row in found} == {"3"}
    for row in found:
        assert float(row["least_bytes_per_sec"]) < float(row["bytes_per_sec"]) < float(row["most_bytes_per_sec"])
    assert "buffered reads" in (tmp_path / "disk.svg").read_text()
    assert main(["probe", str(disk)]) == 0
    assert "medians of 3 runs, 30 % apart in the median" in capsys.readouterr().out


def test_a_trace_says_how_often_each_expert_is_used(
    hybrid_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sea was calm and the night was long " * 3)
    plot = tmp_path / "use.png"
    found = rows(capsys, "trace", hybrid_store, "--text", text, "-o", tmp_path / "t", "--plot", plot)
    config = tiny_config(**HYBRID_ATTENTION)
    of_layer = [float(row["share_of_tokens"]) for row in found if row["layer"] == "0"]
    assert len(of_layer) == config.experts_per_layer and sum(of_layer) == pytest.approx(config.experts_per_token)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plot_replaces_only_what_is_one(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    for _ in range(2):
        assert main(["cache-sim", str(trace), "--slots", "4", "--plot", str(plot)]) == 0
        assert r"of a $\frac{model$" in plot.read_text()  # what it is called, not a formula
    plot.write_text("<svg>a drawing of somebody's</svg>")
    capsys.readouterr()
    refusals: list[tuple[Any, str]] = [
        (plot, "is no chart of smallthinker's"),
        (trace, "ends in .svg or .png"),
        (tmp_path / "plot.pdf", "ends in .svg or .png, found .pdf"),
        (tmp_path / "no" / "plot.svg", "is no folder"),
    ]
    for path, expected in refusals:
        assert main(["cache-sim", str(trace), "--slots", "4", "--plot", str(path)]) == 2
        said = capsys.readouterr()
        assert expected in said.err and said.err.count("\n") == 1 and said.out == ""
    assert "somebody" in plot.read_text()


def test_without_matplotlib_a_plot_is_refused_before_anything_is_computed(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["cache-sim", str(trace), "--plot", str(tmp_path / "plot.svg")]) == 2
    said = capsys.readouterr()
    assert "pip install 'smallthinker[bench]'" in said.err and said.out == ""


def test_a_table_and_json_at_once_are_refused(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache-sim", str(trace), "--csv", "--json"])
    assert "not allowed with" in capsys.readouterr().err
