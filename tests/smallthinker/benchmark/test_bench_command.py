from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smallthinker.benchmark.cgroup import joining, memory_limit
from smallthinker.benchmark.matrix import Cell, cells, random_answers, text_answers
from smallthinker.benchmark.series import Series, default_budgets
from smallthinker.benchmark.views import all_views as views
from smallthinker.cli import main
from smallthinker.commands.options import EXIT_INTERRUPTED, EXIT_USAGE
from smallthinker.errors import RequestError

Row = dict[str, Any]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The jobs that processes were started for."""
    jobs: list[Row] = []
    plain = Series._child

    def counted(self: Series, job: Row, groups: list[Path]) -> Row:
        jobs.append(job)
        return plain(self, job, groups)

    monkeypatch.setattr(Series, "_child", counted)
    return jobs


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else here, and test_report.py has it."""
    monkeypatch.setattr(views, "_draw", lambda *_: [])


def arguments(store: Path, out: Path, *more: str) -> list[str]:
    cell = ["--memory", "200MiB", "--prompt", "8", "--max-tokens", "4"]
    return ["bench", str(store), *cell, "-o", str(out), "--json", *more]


def test_a_benchmark_measures_goes_on_and_measures_again_when_told(
    hybrid_store: Path, tmp_path: Path, children: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    files_before = sorted(path.name for path in hybrid_store.iterdir())
    assert main(arguments(hybrid_store, tmp_path / "out", "--repeats", "1", "--storage", "raw", "emmc")) == 0
    captured = capsys.readouterr()
    assert all("the machine was busy" in line for line in captured.err.splitlines())  # no bar where nobody looks
    found = json.loads(captured.out)
    assert [(cell["profile"], cell["start"]) for cell in found["cells"]] == [
        ("raw", "cold"), ("raw", "warm"), ("emmc", "cold"), ("emmc", "warm"),
    ]  # fmt: skip
    for cell in found["cells"]:
        assert cell["decode_tok_per_sec"]["median"] > 0 and cell["ttft_sec"]["median"] > 0
        assert 0 <= cell["hit_rate"] <= cell["best_hit_rate"] <= 1
        assert cell["decode_tok_per_sec"]["median"] <= cell["decode_ceiling"]
    assert len(children) == 3  # the routing, and a process for each cell
    assert all((tmp_path / "out" / name).exists() for name in ("report.html", "results.md", "decode-8.png"))
    assert sorted(path.name for path in hybrid_store.iterdir()) == files_before

    children.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_draw", lambda *_: [])
        assert main(arguments(hybrid_store, tmp_path / "out", "--repeats", "2")) == 0
    assert [job["options"]["storage"] for job in children] == [
        None
    ]  # the second run of the real disk is all that was missing
    both = json.loads(capsys.readouterr().out)
    assert [cell["decode_tok_per_sec"]["runs"] for cell in both["cells"]] == [2, 2, 1, 1]

    children.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_draw", lambda *_: [])
        assert main(arguments(hybrid_store, tmp_path / "out", "--repeats", "1", "--force")) == 0
    assert len(children) == 1
    again = json.loads(capsys.readouterr().out)
    assert sorted(cell["decode_tok_per_sec"]["runs"] for cell in again["cells"]) == [1, 1, 1, 1]


@pytest.mark.usefixtures("without_charts")
def test_an_interrupted_benchmark_loses_only_the_run_in_progress(
    hybrid_store: Path, tmp_path: Path, children: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Series._child

    def interrupted(self: Series, job: Row, groups: list[Path]) -> Row:
        if len(children) == 2:
            raise KeyboardInterrupt
        return counted(self, job, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Series, "_child", interrupted)
        assert main(arguments(hybrid_store, tmp_path, "--repeats", "2")) == EXIT_INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    children.clear()
    assert main(arguments(hybrid_store, tmp_path, "--repeats", "2")) == 0
    assert len(children) == 1


@pytest.mark.usefixtures("without_charts")
def test_greedy_tokens_and_a_texts_tokens_are_measured_too(
    hybrid_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day in April, and the clocks were striking.")
    options = ("--repeats", "1", "--text", str(text), "--greedy")
    assert main(arguments(hybrid_store, tmp_path / "out", *options)) == 0
    settings = json.loads(capsys.readouterr().out)["environment"]["settings"]
    assert settings["source"] == "text" and settings["greedy"] and len(settings["text_sha256"]) == 64
    assert main(arguments(hybrid_store, tmp_path / "out", "--repeats", "1")) == EXIT_USAGE
    assert "settings's source is 'text', now 'random'" in capsys.readouterr().err


@pytest.mark.usefixtures("without_charts")
def test_a_budget_below_the_floor_is_a_row_of_its_own_and_the_others_are_measured(
    hybrid_store: Path, tmp_path: Path, children: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--memory", "10MiB", "200MiB", "--repeats", "2"]
    assert main(arguments(hybrid_store, tmp_path, *options)) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [row["memory_bytes"] for row in found["failed"]] == [10 << 20]
    assert "below the floor" in found["failed"][0]["error"] and "below the floor" in captured.err
    assert len(children) == 1 + 1 + 2  # tried once
    assert len(found["cells"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere"),
        (["--storage", "floppy"], "floppy"),
        (["--max-tokens", "0"], "--max-tokens: expected 1 to"),
        (["--repeats", "-1"], "--repeats: expected 1 to"),
        (["--prompt", "8", "0"], "--prompt: expected 1 to"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
        (["--memory", "much"], "expected a size"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--real-throttle"], "--storage: expected one to throttle"),
        (["one", "two"], "expected one model"),
        (["--submit", "nowhere.jsonl"], "nowhere.jsonl"),
        (["demo", "--submit", "x"], "nothing else"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_short_says_how_long_it_must_be() -> None:
    assert [len(answer.prompt) for answer in text_answers(range(24), 8, 4)] == [8, 8]
    with pytest.raises(RequestError, match="expected 24 tokens or more, 2 prompts of 8 and 4 decoded after each"):
        text_answers(range(23), 8, 4)


def test_random_prompts_hang_on_seed_and_length_alone_and_differ_from_each_other() -> None:
    cold, warm = random_answers(300, 8, 4, seed=1)
    assert cold != warm and [cold, warm] == random_answers(300, 8, 4, seed=1) != random_answers(300, 8, 4, seed=2)
    assert all(0 <= token < 300 for token in (*cold.prompt, *cold.following))


def test_cells_are_every_combination_once() -> None:
    found = cells([1, 2, 1], ["raw", "emmc"], [8])
    assert found == [Cell(1, "raw", 8), Cell(2, "raw", 8), Cell(1, "emmc", 8), Cell(2, "emmc", 8)]


def test_default_budgets_rise_from_above_the_floor(hybrid_store: Path) -> None:
    budgets = default_budgets(hybrid_store, 100 << 20)
    assert budgets == sorted(budgets) and budgets[0] > 100 << 20 and all(size % (1 << 20) == 0 for size in budgets)


def test_a_memory_limit_counts_what_its_child_takes_and_is_gone_afterwards() -> None:
    import subprocess
    import sys

    try:
        with memory_limit(256 << 20) as group:
            command = joining([group.folder], [sys.executable, "-c", "print(len(b'x' * (40 << 20)))"])
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{40 << 20}\n"
            assert 40 << 20 < group.peak_bytes() <= 256 << 20
            assert group.ceiling_hits() == 0
    except RequestError as e:
        pytest.skip(str(e))
    assert not group.folder.exists()


OURS = ("results.md", "report.html", "decode-8.png", "experts-8.svg", "routing-8.trace")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_is_no_benchmarks_is_not_replaced_unasked(
    hybrid_store: Path, tmp_path: Path, children: list[Row], name: str, is_link: bool, capsys: Any
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "mine").write_text("about smallthinker bench, but mine\n")
    (folder / name).symlink_to("../mine") if is_link else (folder / name).write_bytes((tmp_path / "mine").read_bytes())
    assert main(arguments(hybrid_store, folder)) == EXIT_USAGE
    error = capsys.readouterr().err
    assert name in error and "--force" in error and error.count("\n") == 1
    assert children == [] and [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == (tmp_path / "mine").read_text() == "about smallthinker bench, but mine\n"


def test_a_benchmark_is_not_written_into_its_store_or_over_its_text(
    hybrid_store: Path, tmp_path: Path, children: list[Row], capsys: Any
) -> None:
    (tmp_path / "link").symlink_to(hybrid_store)
    before = sorted(path.name for path in hybrid_store.iterdir())
    for out in (hybrid_store, tmp_path / "link"):
        assert main(arguments(hybrid_store, out, "--force")) == EXIT_USAGE
        assert "is the store that is measured" in capsys.readouterr().err
    assert sorted(path.name for path in hybrid_store.iterdir()) == before
    (tmp_path / "text").write_text("a text " * 40)
    (tmp_path / "report.html").hardlink_to(tmp_path / "text")
    assert main(arguments(hybrid_store, tmp_path, "--force", "--text", str(tmp_path / "text"))) == EXIT_USAGE
    assert "which this command reads" in capsys.readouterr().err
    assert children == []
