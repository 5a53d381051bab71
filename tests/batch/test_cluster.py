"""`batch --cluster`: the same file as one machine's, whatever node or driver ends meanwhile."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallthinker.cli import main
from smallthinker.cluster.node_store import fetch, identity_of
from smallthinker.errors import StoreFormatError, StoreReadError
from smallthinker.expert_store.store import Store

ROWS, NODES = 500, 3
PROMPTS = ["--prompt-template", "{text}", "--max-tokens", "6"]
OPTIONS = [
    *PROMPTS,
    "--prompt-template",
    "{text}",
    "--max-tokens",
    "6",
    "--threads",
    "1",
    "--parallel",
    "4",
    "--memory",
    "400MiB",
]


def test_without_ray_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.jsonl").write_text('{"text": "Once"}\n')
    words = ["batch", "demo", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *OPTIONS]
    assert main([*words, "--cluster", "local"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'smallthinker[ray]'" in said and said.count("\n") == 1
    assert main([*words, "--node-dir", "here"]) == 2
    assert "--node-dir: has no meaning without --cluster" in capsys.readouterr().err


def test_a_node_s_copy_is_fetched_once_and_only_if_it_is_the_driver_s_model(tmp_path: Path, hybrid_store: Path) -> None:
    with Store.open(hybrid_store) as store:
        identity = identity_of(store)
    kept = fetch(hybrid_store, identity, str(tmp_path))
    assert kept.parent == tmp_path and {path.name for path in kept.iterdir()} >= {"experts.safetensors", "config.json"}
    inode = (kept / "experts.safetensors").stat().st_ino
    assert (
        fetch(hybrid_store, identity, str(tmp_path)) == kept and (kept / "experts.safetensors").stat().st_ino == inode
    )
    assert fetch(hybrid_store, identity, None) == hybrid_store
    for folder in (None, str(tmp_path / "other")):
        with pytest.raises(StoreFormatError, match="expected the driver's model"):
            fetch(hybrid_store, "0" * 64, folder)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_copy_with_a_wrong_byte_is_none(tmp_path: Path, hybrid_store: Path) -> None:
    import shutil

    damaged = Path(shutil.copytree(hybrid_store, tmp_path / "damaged"))
    with Store.open(damaged) as store:
        identity = identity_of(store)
    with (damaged / "experts.safetensors").open("r+b") as file:
        file.seek(-7, 2)
        byte = file.read(1)[0]
        file.seek(-7, 2)
        file.write(bytes([byte ^ 4]))
    with pytest.raises((StoreFormatError, StoreReadError), match="checksum"):
        fetch(damaged, identity, str(tmp_path / "kept"))
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes on this machine, and a head that computes nothing."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or a busy machine needs minutes to start one
    pytest.importorskip("ray", reason="Ray is not installed: smallthinker[ray]")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    made.workers = [made.add_node(num_cpus=2, memory=1 << 30, **small) for _ in range(NODES)]
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with (tmp_path / "in.jsonl").open("w") as file:
        for i in range(ROWS):
            file.write(json.dumps({"i": i, "text": f"It was the {i % 90}th night"}) + "\n")
    return tmp_path


def started(place: Path, output: str, *options: str) -> subprocess.Popen[str]:
    words = ["batch", "demo", "in.jsonl", output, *OPTIONS, "--json", *options]
    command = [sys.executable, "-m", "smallthinker", *words]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answered(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def wait_for_rows(process: subprocess.Popen[str], journal: Path, rows: int) -> None:
    while answered(journal) < rows:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            raise AssertionError(process.communicate())


@pytest.mark.slow
def test_a_node_and_then_the_driver_end_and_the_file_is_one_machine_s(cluster: Any, place: Path) -> None:
    alone = started(place, "alone.jsonl")
    assert alone.wait() == 0, alone.communicate()
    expected = (place / "alone.jsonl").read_bytes()
    assert [json.loads(line)["i"] for line in expected.splitlines()] == list(range(ROWS))

    there = ["--cluster", cluster.address, "--node-dir", str(place / "node")]
    job, journal = started(place, "out.jsonl", *there), place / "out.jsonl.journal"
    wait_for_rows(job, journal, ROWS // 2)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)  # its own processes
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert (place / "out.jsonl").read_bytes() == expected
    assert json.loads(out)["nodes"] == NODES
    assert len(list((place / "node").iterdir())) == 1

    driver, journal = started(place, "again.jsonl", *there), place / "again.jsonl.journal"
    wait_for_rows(driver, journal, ROWS // 2)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    done = answered(journal)
    assert ROWS // 2 <= done < ROWS
    again = started(place, "again.jsonl", *there)
    out, err = again.communicate()
    assert again.returncode == 0, err
    figures = json.loads(out)
    assert figures["already_done"] in (done, done - 1)  # one that was torn
    assert (place / "again.jsonl").read_bytes() == expected
