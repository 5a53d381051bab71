from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_results import made_up, write

from smallthinker.benchmark.submission import COLUMNS, read_submission, row
from smallthinker.cli import main
from smallthinker.commands.options import EXIT_USAGE
from smallthinker.errors import ResultsError

BUILD = Path(__file__).parents[3] / "docs" / "results" / "build.py"


def test_a_valid_file_becomes_one_row_with_every_budget_of_the_real_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(tmp_path / "results.jsonl")
    assert main(["bench", "--submit", str(tmp_path / "results.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    assert re.findall(r"(\d+) MiB: [\d.]+ / [\d.]+ of [\d.]+", lines[2]) == ["100", "200", "400"]
    assert "2026-01-02" in lines[2]


def test_nothing_in_a_file_becomes_markup(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    hostile = "a|b<script>alert(1)</script>[x](javascript:y)`z`"
    results.environment["model"]["name"] = hostile
    results.environment["machine"]["cpu"] = hostile + "\n| second row |"
    results.environment["disk"]["model"] = results.environment["machine"]["commit"] = hostile
    write(results)
    line = row(read_submission(results.path))
    assert line.count("|") == len(COLUMNS) + 1 and "\n" not in line
    assert re.findall(r"<[^>]*>", line.replace("<br>", "")) == [] and "[" not in line and "`" not in line


def test_a_file_without_runs_or_with_a_profile_of_unknown_figures_is_refused(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    none = copy.deepcopy(results)
    none.rows = []
    write(none)
    with pytest.raises(ResultsError, match="expected at least one run"):
        read_submission(none.path)
    results.environment["profiles"] = {}
    write(results)
    with pytest.raises(ResultsError, match="'emmc': expected its figures"):
        read_submission(results.path)


def test_a_cut_off_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made_up(tmp_path / "results.jsonl").path
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["bench", "--submit", str(path)]) == EXIT_USAGE
    assert "cut off" in capsys.readouterr().err


def test_the_projects_table_is_what_its_files_make() -> None:
    done = subprocess.run([sys.executable, str(BUILD), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
