from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallthinker import _kernels, doctor, llm
from smallthinker.doctor import diagnose, diagnosis_text
from smallthinker.expert_store import host


def run_doctor(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smallthinker", "doctor", *args],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_a_machine_that_runs_these_tests_is_ready_and_the_facts_are_its_own() -> None:
    result = run_doctor("--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["problems"] == []
    assert facts["isa"]["chosen"] == _kernels.isa()
    assert facts["isa"]["available"] == _kernels.available_isas()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["default_threads"] == host.physical_cores()
    assert 0 < facts["memory_available_bytes"] <= facts["memory_bytes"]
    text = run_doctor()
    assert text.returncode == 0
    assert "the bundled model answers" in text.stdout and _kernels.isa() in text.stdout


def test_a_forced_instruction_set_is_named_as_forced() -> None:
    facts = json.loads(run_doctor("--json", SMALLTHINKER_ISA="portable").stdout)
    assert facts["isa"]["chosen"] == "portable"
    assert "SMALLTHINKER_ISA" in facts["isa"]["why"]
    assert "SMALLTHINKER_ISA" not in json.loads(run_doctor("--json", SMALLTHINKER_ISA="").stdout)["isa"]["why"]


def test_kernels_that_cannot_be_loaded_are_a_problem_and_not_a_traceback() -> None:
    result = run_doctor(SMALLTHINKER_ISA="sse9")
    assert result.returncode == 2
    assert result.stderr == ""
    assert "problem" in result.stdout and "sse9" in result.stdout
    command = [sys.executable, "-m", "smallthinker", "run", "x"]
    environment = os.environ | {"SMALLTHINKER_ISA": "sse9"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1 and "sse9" in run.stderr


def test_a_model_that_gives_no_answer_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "DEMO_STORE", tmp_path)
    facts = diagnose()
    assert len(facts["problems"]) == 1 and str(tmp_path) in facts["problems"][0]
    assert str(tmp_path) in diagnosis_text(facts)


def test_facts_that_a_system_does_not_have_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.psutil, "cpu_count", lambda logical=True: 4 if logical else None)
    monkeypatch.setattr(host, "transparent_huge_pages", lambda: None)
    monkeypatch.setattr(host, "memory_limit_bytes", lambda: 3 << 30)
    facts: dict[str, Any] = diagnose()
    text = diagnosis_text(facts)
    for said in ("unknown physical cores", "not this system's", "cgroup limit 3,072 MiB"):
        assert said in text
