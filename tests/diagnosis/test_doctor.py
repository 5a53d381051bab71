"""The doctor: facts are this machine's own, problems have a remedy, and what is pasted names nobody."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallthinker import _kernels, host, llm
from smallthinker.cli import main
from smallthinker.diagnosis import doctor
from smallthinker.diagnosis.doctor import diagnose
from smallthinker.diagnosis.report import diagnosis_text, report_block, without_persons
from smallthinker.engine import Engine
from smallthinker.errors import MemoryBudgetError
from smallthinker.expert_store.device import disk_facts as disk_module
from smallthinker.expert_store.store import Store
from smallthinker.host import machine_facts, pages
from smallthinker.memory_plan import MIB


def run_doctor(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smallthinker", "doctor", *args],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def severities(facts: dict[str, Any]) -> list[str]:
    return [finding["severity"] for finding in facts["findings"]]


def said(facts: dict[str, Any]) -> str:
    return "\n".join(f"{finding['what']} {finding['remedy']}" for finding in facts["findings"])


def test_a_machine_that_runs_these_tests_is_ready_and_the_facts_are_its_own() -> None:
    result = run_doctor("--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["would_run"] and "error" not in severities(facts)
    assert facts["isa"]["chosen"] == facts["chosen"]["kernels"]["value"] == _kernels.isa()
    assert facts["isa"]["available"] == _kernels.available_isas()
    assert facts["isa"]["compiler"] == _kernels.COMPILER
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["numpy"] and "pytest" not in facts["packages"]
    assert facts["default_threads"] == host.physical_cores()
    assert 0 < facts["memory_available_bytes"] <= facts["memory_bytes"]
    assert facts["disk"]["path"] == str(Path.cwd()) and facts["disk"]["free_bytes"] > 0
    assert facts["store"] is None
    assert "```" not in diagnosis_text(facts) and "the bundled model answers" in facts["report"]


def test_a_forced_instruction_set_is_named_as_forced_and_is_worth_a_warning() -> None:
    facts = json.loads(run_doctor("--json", SMALLTHINKER_ISA="portable").stdout)
    assert facts["isa"]["chosen"] == "portable" and facts["would_run"]
    assert "SMALLTHINKER_ISA" in facts["isa"]["why"]
    if len(facts["isa"]["available"]) > 1:
        assert "unset SMALLTHINKER_ISA" in said(facts)
    assert "SMALLTHINKER_ISA" not in json.loads(run_doctor("--json", SMALLTHINKER_ISA="").stdout)["isa"]["why"]


def test_kernels_that_cannot_be_loaded_are_a_problem_and_not_a_traceback() -> None:
    result = run_doctor(SMALLTHINKER_ISA="sse9")
    assert result.returncode == 2
    assert result.stderr == ""
    assert "NOT READY" in result.stdout and "sse9" in result.stdout and "-> unset SMALLTHINKER_ISA" in result.stdout
    command = [sys.executable, "-m", "smallthinker", "run", "x"]
    environment = os.environ | {"SMALLTHINKER_ISA": "sse9"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1 and "sse9" in run.stderr


def test_a_model_that_gives_no_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "DEMO_STORE", tmp_path)
    facts = diagnose()
    assert not facts["would_run"] and "error" in severities(facts)
    assert str(tmp_path) in diagnosis_text(facts)
    assert str(tmp_path) not in report_block(facts)


def test_nothing_at_the_path_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "nowhere" in err


def test_the_floor_is_the_engines_own(hybrid_store: Path) -> None:
    with Store.open(hybrid_store) as store:
        floor, context = doctor.floor_bytes(store)
    with pytest.raises(MemoryBudgetError) as error:
        Engine(hybrid_store, memory=1, context=context)
    assert floor == pytest.approx(error.value.floor_bytes, abs=8 * MIB)  # the process itself grows between the two
    with Engine(hybrid_store, memory=floor + 8 * MIB, context=context) as engine:
        assert engine.plan.slots < engine.plan.num_experts or engine.plan.budget_bytes == floor + 8 * MIB


def test_a_store_that_does_not_fit_is_an_error_and_one_that_fits_is_not(
    hybrid_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = diagnose(hybrid_store)
    assert facts["would_run"] and facts["store"]["fits"]
    assert "the store fits" in report_block(facts)
    monkeypatch.setattr(machine_facts.host, "available_memory_bytes", lambda: MIB)
    monkeypatch.setattr(doctor, "_answer_once", lambda findings: None)  # with this little, it wouldn't either
    facts = diagnose(hybrid_store)
    assert not facts["store"]["fits"] and not facts["would_run"]
    assert "MiB at least" in said(facts)


def test_a_broken_store_is_an_error_with_its_reason(hybrid_store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "store"
    shutil.copytree(hybrid_store, broken)
    (broken / "config.json").write_text("{}")
    facts = diagnose(broken)
    assert not facts["would_run"] and "the store can't be opened" in said(facts)


def test_limits_of_the_process_are_found_and_count() -> None:
    limited = ["bash", "-c", f"ulimit -v {8 << 20}; exec {sys.executable} -m smallthinker doctor --json"]
    facts = json.loads(subprocess.run(limited, capture_output=True, text=True, check=False).stdout)
    assert facts["ulimits"]["v"] == 8 << 30
    if facts["memory_available_bytes"] > 8 << 30:
        assert "ulimit -v is 8,192 MiB" in said(facts)


def test_strict_overcommit_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "memory", lambda: machine_facts.memory() | {"overcommit": {"mode": 2, "left_bytes": MIB}}
    )
    assert "only 1 MiB may still be promised" in said(diagnose())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_system": "nfs4"}, "copy it to a disk of this machine"),
        ({"file_system": "overlay"}, "put it on a volume"),
        ({"file_system": "tmpfs"}, "in memory already"),
        ({"direct_reads": False}, "past the page cache"),
        ({"is_rotational": True}, "put it on an SSD"),
        ({"is_writable": False}, "can't be written"),
    ],
)
def test_a_poor_place_for_a_store_is_a_warning(changes: dict[str, Any], message: str) -> None:
    good = {"path": "/x", "file_system": "ext4", "device": "nvme0n1", "is_rotational": False, "is_read_only": False}
    good |= {"is_writable": True, "direct_reads": True, "free_bytes": 1, "total_bytes": 2}
    for values, expected in ((good, 0), (good | changes, 1)):
        findings: list[doctor.Finding] = []
        doctor._judge_disk(disk_module.DiskFacts(**values), True, findings)
        assert len(findings) == expected
    assert findings[0].severity == "warning" and message in f"{findings[0].what} {findings[0].remedy}"


def test_facts_that_a_system_does_not_have_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_facts.psutil, "cpu_count", lambda logical=True: 4 if logical else None)
    monkeypatch.setattr(pages, "transparent_huge_pages", lambda: None)
    monkeypatch.setattr(host, "memory_limit_bytes", lambda: 3 << 30)
    monkeypatch.setattr(machine_facts, "ulimits", dict)
    monkeypatch.setattr(machine_facts, "overcommit", lambda: None)
    monkeypatch.setattr(disk_module, "_mount_of", lambda path: (None, None, None))
    text = diagnosis_text(diagnose())
    for words in ("unknown physical", "not known here", "cgroup limit 3,072 MiB", "none known", "file system unknown"):
        assert words in text


def test_what_is_pasted_has_no_path_and_no_name(hybrid_store: Path, tmp_path: Path) -> None:
    """With a store under a home whose name has spaces, errors that name paths included."""
    home = tmp_path / "jane.doe of Ghent"
    shutil.copytree(hybrid_store, home / "my models" / "secret-store")
    (home / "broken" / "experts.safetensors").parent.mkdir()
    (home / "broken" / "experts.safetensors").touch()
    for store in (home / "my models" / "secret-store", home / "broken"):
        environment = {"HOME": str(home), "USER": "jane.doe", "LOGNAME": "jane.doe", "USERNAME": "jane.doe"}
        result = run_doctor(str(store), "--json", **environment)
        facts = json.loads(result.stdout)
        whole = diagnosis_text(facts)
        assert str(store) in whole  # the reader does see the path
        block = facts["report"]
        for secret in (str(tmp_path), tmp_path.name, "jane", "Ghent", "secret-store", "broken", sys.prefix):
            assert secret not in block
        for name in (socket.gethostname(), getpass.getuser(), Path.home().name):
            assert not re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", block)
        assert facts["version"] in block and facts["cpu"] in block


def test_paths_of_every_kind_and_names_are_taken_out_and_words_stay() -> None:
    text = (
        "can't open /home/jane/a b/c: gone; see C:\\Users\\jane\\x.txt, ~/y and \\\\host7\\share on host7; 3/4, or/and"
    )
    found = without_persons(text, ["/home/jane/a b/c"], ["jane", "host7"])
    assert found == "can't open <path>: gone; see <path>, <path> and <path> on <name>; 3/4, or/and"
    assert without_persons("janes jane", [], ["jane"]) == "janes <name>"
