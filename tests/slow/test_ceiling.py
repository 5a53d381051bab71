"""The budget is a ceiling: a synthetic 4B store under a hard limit of the kernel. Needs root, cgroups, 3 GB of disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from smallthinker.benchmark import cgroup
from smallthinker.benchmark.cgroup import MemoryGroup, joining
from smallthinker.errors import RequestError
from smallthinker.expert_store.format import PROFILE_FILE

pytestmark = pytest.mark.slow

MIB, GIB = 1 << 20, 1 << 30


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryGroup]:
    with ExitStack() as stack:
        try:
            group = stack.enter_context(cgroup.memory_limit(limit_bytes))
        except RequestError as e:
            pytest.skip(str(e))
        yield group


@pytest.fixture(scope="module")
def store_4b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from smallthinker.expert_store.synthetic.synth import synth

    folder = tmp_path_factory.mktemp("4b")
    if shutil.disk_usage(folder).free < 4 * GIB:
        pytest.skip(f"{folder}: less than 4 GiB of disk free")
    return synth("4b", folder / "store", "q4_0")


def run_limited(store: Path, limit_bytes: int, memory: str, *options: str, stdin: str) -> tuple[MemoryGroup, str, dict]:  # type: ignore[type-arg]
    """A run inside the limit, from a cold page cache: (cgroup's figures, text, stats)."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    with memory_limit(limit_bytes) as group:
        command = [sys.executable, "-m", "smallthinker", "run", "-m", str(store), "--memory", memory, "--seed", "1"]
        result = subprocess.run(
            joining([group.folder], [*command, "--ignore-eos", "--stats", "json", *options, "-"]),
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert group.ceiling_hits() == 0, f"peak {group.peak_bytes()}"
        assert group.peak_bytes() <= limit_bytes
        return group, result.stdout, json.loads(result.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def store_21b() -> Path:
    path = os.environ.get("SMALLTHINKER_TEST_21B")
    if path is None:
        pytest.skip("a 21B store takes 12 GB of disk: make one with `synth 21b`, name it in SMALLTHINKER_TEST_21B")
    return Path(path)


def floor_mib(store: Path, *options: str) -> int:
    """What the refusal of a budget that is too small says."""
    command = [sys.executable, "-m", "smallthinker", "run", "-m", str(store), "--memory", "64MiB", *options, "hello"]
    refusal = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    match = re.search(r"floor of (\d+) MiB", refusal)
    assert match, refusal
    return int(match[1])


# What the interpreter holds differs a little from start to start, and with it the floor.
FLOOR_SPREAD_MIB = 12


def test_the_floor_that_the_refusal_names_is_enough(store_4b: Path) -> None:
    mib = floor_mib(store_4b) + FLOOR_SPREAD_MIB
    run_limited(store_4b, mib * MIB, f"{mib}MiB", "--max-tokens", "8", stdin="Once upon a time")


def test_the_first_start_measures_the_disk_within_the_limit(store_4b: Path) -> None:
    (store_4b / PROFILE_FILE).unlink(missing_ok=True)
    mib = floor_mib(store_4b) + FLOOR_SPREAD_MIB
    (store_4b / PROFILE_FILE).unlink(missing_ok=True)
    run_limited(store_4b, mib * MIB, f"{mib}MiB", "--max-tokens", "2", stdin="Once upon a time")


def test_a_prompt_of_16000_tokens_stays_below_the_limit(store_4b: Path) -> None:
    options = ("--max-tokens", "4", "--context", "16384")
    _, _, stats = run_limited(store_4b, GIB, "1GiB", *options, stdin="All work. " * 1600)
    assert stats["prompt_tokens"] == 16000


def test_the_21b_shape_writes_at_its_floor_and_at_8_gib(store_21b: Path) -> None:
    mib = floor_mib(store_21b) + FLOOR_SPREAD_MIB
    run_limited(store_21b, mib * MIB, f"{mib}MiB", "--max-tokens", "2", stdin="Once upon a time")
    run_limited(store_21b, 8 * GIB, "8GiB", "--max-tokens", "8", stdin="Once upon a time")


@pytest.mark.parametrize("reader", ["direct", "mmap"])
def test_the_4b_shape_writes_under_a_hard_limit_of_1_gib(store_4b: Path, reader: str) -> None:
    _, _, stats = run_limited(store_4b, GIB, "1GiB", "--max-tokens", "32", "--reader", reader, stdin="Once upon a time")
    assert stats["new_tokens"] == 32


def test_a_prompt_that_fills_the_context_stays_below_the_limit(store_4b: Path) -> None:
    """Every part of the plan is touched: the whole KV cache, scratch, all slots."""
    run_limited(store_4b, GIB, "1GiB", "--max-tokens", "16", "--context", "4096", stdin="All work. " * 405)


def test_the_text_is_the_same_at_half_the_memory(store_4b: Path) -> None:
    options = ("--max-tokens", "12", "--context", "512")
    _, text, rich = run_limited(store_4b, 4 * GIB, "4GiB", *options, stdin="Once upon a time")
    _, same, poor = run_limited(store_4b, GIB // 2, "512MiB", *options, stdin="Once upon a time")
    assert text == same
    assert poor["slots"] < rich["slots"] / 4


HOG = """
import sys
taken = []
for line in sys.stdin:
    taken = [*taken, b"x" * (int(line) << 20)] if int(line) else []
    print(flush=True)
"""
SQUEEZED = """
import json, subprocess, sys
from smallthinker.engine import Engine
from smallthinker import host

hog = subprocess.Popen([sys.executable, "-c", sys.argv[3]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
with Engine(sys.argv[1], memory="1700MiB", context=2048) as engine:
    logits, _ = engine.prefill(list(range(40)))
    ids, resident = [], []
    for tokens, mib in ((120, 0), (400, int(sys.argv[2])), (300, 0)):
        for _ in range(tokens):
            print(mib, file=hog.stdin, flush=True)
            hog.stdout.readline()
            ids.append(int(logits.argmax()))
            logits = engine.decode(ids[-1])
        resident.append(host.resident_bytes())
    print(json.dumps({"ids": ids, "resident": resident}))
hog.stdin.close()
hog.wait()
"""


def test_experts_give_way_to_a_process_that_grows_and_come_back_with_the_same_output(store_4b: Path) -> None:
    """Both in one cgroup of 1800 MiB; the other takes 1 MiB at each of 400 tokens."""
    answers = []
    for mib in (1, 0):
        with memory_limit(1800 * MIB) as group:
            command = joining([group.folder], [sys.executable, "-c", SQUEEZED, str(store_4b), str(mib), HOG])
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            answers.append(json.loads(result.stdout))
    squeezed, alone = answers
    assert squeezed["ids"] == alone["ids"]
    before, during, after = squeezed["resident"]
    assert during < before - 200 * MIB
    assert after > during + 200 * MIB
    assert min(alone["resident"]) > before - 64 * MIB
