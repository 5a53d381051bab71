"""`smallthinker plan` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_models import HYBRID_ATTENTION, tiny_config

from smallthinker.cli import main
from smallthinker.models.registry import to_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "config.json"
    path.write_text(json.dumps(to_config(tiny_config(**HYBRID_ATTENTION))))
    return str(path)


SHORT = ["--prompt", "16", "--max-tokens", "8", "--storage", "emmc"]


def test_a_configuration_alone_gives_needs_speeds_and_sources(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, *SHORT, "--memory", "4000MiB", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["runs"] and facts["floor_bytes"] <= facts["recommended_bytes"] <= facts["full_bytes"] < 4000 << 20
    (budget,) = facts["budgets"]
    assert budget["plan"]["budget_bytes"] == 4000 << 20
    assert budget["first_decode"]["tok_per_sec"] > 0 and budget["first_ttft_sec"] > 0
    assert budget["later_decode"]["hit_rate"] > 0.9
    assert set(facts["sources"]) == {"disk", "kernels", "routing", "memory"}
    assert "emmc" in facts["sources"]["disk"] and "1.3" in facts["sources"]["routing"]
    assert facts["changes"] is not None


def test_several_budgets_make_a_table(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, *SHORT, "--memory", "5000MiB", "4000MiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    budgets = [line.split()[0] for line in lines if " of 32 " in line and line.startswith(" ")]
    assert budgets == ["4,000", "5,000"]


def test_too_little_memory_says_what_is_needed_and_exits_with_2(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *SHORT, "--memory", "30MiB"]) == 2
    said = capsys.readouterr()
    assert "memory: floor " in said.out and "memory plan for" in said.out
    (error,) = said.err.splitlines()
    assert "30 MiB is below the floor of" in error
    named = re.search(r"give --memory (\d+MiB)", error)
    assert named is not None
    assert main(["plan", config, *SHORT, "--memory", named[1]]) == 0  # the floor that is named works


def test_a_budget_below_the_floor_among_others_is_told_after_the_table(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *SHORT, "--memory", "30MiB", "4000MiB"]) == 2
    said = capsys.readouterr()
    assert "decode" in said.out and "plan for 4000 MiB" in said.out
    assert "30 MiB is below the floor" in said.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--storage", "floppy"], "sata-ssd"),
        (["--skew", "-1"], "--skew"),
        (["--memory", "much"], "expected a size"),
        (["--context", "20"], "don't fit 20"),
        (["--threads", "0"], "threads: expected"),
        (["--trace", "nothing.trace"], "nothing.trace"),
    ],
)
def test_bad_input_is_one_clear_line(
    config: str, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *SHORT, *options]) == 2
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert "error:" in error and expected in error and said.out == ""


def test_a_trace_of_another_model_is_refused_and_the_models_own_is_named(
    config: str, hybrid_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, trace = tmp_path / "text.txt", tmp_path / "text.trace"
    text.write_text("the sea was calm and the night was long " * 3)
    assert main(["trace", str(hybrid_store), "--text", str(text), "-o", str(trace)]) == 0
    assert main(["plan", config, *SHORT, "--memory", "4000MiB", "--trace", str(trace), "--json"]) == 0
    assert "a trace of" in json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]["routing"]
    assert main(["plan", "4b", *SHORT, "--trace", str(trace)]) == 2
    assert "expected a trace of 32 routed layers of 32 experts" in capsys.readouterr().err
