from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_up_results import made_up, write

from smallthinker.benchmark.compare import compare, comparison_text, judge, pooled_noise
from smallthinker.benchmark.summary import Spread
from smallthinker.commands.options import EXIT_USAGE


def spreads(rng: np.random.Generator, cells: int, runs: int, noise: float) -> list[Spread]:
    return [Spread(tuple(rng.normal(1, noise, runs).tolist())) for _ in range(cells)]


@pytest.mark.parametrize("runs", [3, 5, 8])
def test_runs_that_differ_by_chance_alone_are_rarely_called_a_change(runs: int) -> None:
    rng = np.random.default_rng(runs)
    a, b = spreads(rng, 300, runs, 0.05), spreads(rng, 300, runs, 0.05)
    noise = pooled_noise([*a, *b])
    assert 0.035 < noise < 0.07
    wrong = sum(judge(x, y, noise, False)[3] != "within noise" for x, y in zip(a, b, strict=True))
    assert wrong <= 0.06 * 300


def test_a_change_of_five_times_the_noise_is_seen_and_named_by_what_is_better() -> None:
    rng = np.random.default_rng(0)
    a = spreads(rng, 100, 3, 0.03)
    b = [Spread(tuple(1.15 * value for value in spread.values)) for spread in spreads(rng, 100, 3, 0.03)]
    noise = pooled_noise([*a, *b])
    speeds = [judge(x, y, noise, lower_is_better=False)[3] for x, y in zip(a, b, strict=True)]
    times = [judge(x, y, noise, lower_is_better=True)[3] for x, y in zip(a, b, strict=True)]
    assert speeds.count("faster") > 90 and "slower" not in speeds
    assert times.count("slower") > 90 and "faster" not in times


def test_three_runs_that_happen_to_agree_are_not_trusted_more_than_the_others() -> None:
    a, b = Spread((1.0, 1.0, 1.0)), Spread((1.03, 1.03, 1.03))
    assert judge(a, b, 0.05, False)[3] == "within noise"
    assert judge(a, b, 0.001, False)[3] == "faster"


def test_two_runs_can_not_tell() -> None:
    assert judge(Spread((1.0, 1.01)), Spread((2.0, 2.01)), 0.01, False)[3] == "too few runs"


def test_results_beside_themselves_have_not_changed(tmp_path: Path) -> None:
    results = made_up(tmp_path / "a.jsonl")
    found = compare(results, results)
    assert {change.verdict for change in found.changes} == {"within noise"} and not found.warnings
    assert len(found.changes) == 3 * 2 * 2 * 2  # budgets, profiles, starts, figures
    assert "0 of 24 figures changed" in comparison_text(found)


def test_a_faster_version_is_faster_in_every_cell(tmp_path: Path) -> None:
    found = compare(made_up(tmp_path / "a.jsonl"), made_up(tmp_path / "b.jsonl", factor=1.4, seed=1))
    assert {change.verdict for change in found.changes} == {"faster"}
    json.dumps(found.to_dict())


def test_another_machine_or_model_is_warned_of_but_not_another_commit(tmp_path: Path) -> None:
    a, b = made_up(tmp_path / "a.jsonl"), made_up(tmp_path / "b.jsonl")
    b.environment["machine"] |= {"commit": "other"}
    assert compare(a, b).warnings == []
    b.environment["machine"]["cpu"] = "B"
    b.environment["model"]["quant"] = "f16"
    b.environment["profiles"]["emmc"]["latency_sec"] = 0.01
    warnings = compare(a, b).warnings
    assert [warning.split(" differs")[0] for warning in warnings] == ["machine", "model", "profile"]


def test_the_command_compares_folders_and_refuses_what_has_no_cell_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallthinker.cli import main

    for name, factor in (("a", 1.0), ("b", 0.5)):
        made_up(tmp_path / name / "results.jsonl", factor=factor)
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {change["verdict"] for change in changes} == {"slower"}
    other = made_up(tmp_path / "c.jsonl", memory_mib=(300,))
    write(other)
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "c.jsonl")]) == EXIT_USAGE
    assert "nothing to compare: no budget, disk and prompt length was measured in both" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "a")]) == EXIT_USAGE
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "nowhere")]) == EXIT_USAGE


def test_files_of_which_nothing_changed_say_what_could_have_been_seen(tmp_path: Path) -> None:
    a = made_up(tmp_path / "a.jsonl")
    text = comparison_text(compare(a, a))
    assert re.search(r"decode: a run's noise is [\d.]+ %, so these runs show a change of \d+ %", text)
    assert "A: tiny, q4_0, on A CPU @ 2 GHz, 2 cores, 8 GiB; 0123456, 2026-01-02" in text


def test_two_machines_are_a_table_and_a_chart_that_name_their_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallthinker.cli import main

    made_up(tmp_path / "a" / "results.jsonl")
    b = made_up(tmp_path / "b" / "results.jsonl", factor=1.6)
    b.environment["model"] |= {"name": "another"}
    write(b)
    plot = tmp_path / "both.svg"
    command = ["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main([*command, "--csv", "--plot", str(plot)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 24 and {row["verdict"] for row in rows} == {"faster"}
    assert {"a_median", "a_runs", "b_least", "profile", "memory_bytes"} <= rows[0].keys()
    drawing = plot.read_text()
    assert "A: tiny, q4_0, on A CPU" in drawing and "B: another, q4_0" in drawing and "faster, x1.6" in drawing
    before = plot.read_bytes()
    assert main([*command, "--plot", str(tmp_path / "a" / "results.jsonl")]) == EXIT_USAGE
    assert main(["bench", "demo", "--plot", str(plot)]) == EXIT_USAGE and plot.read_bytes() == before
    assert "--plot: expected with compare" in capsys.readouterr().err
