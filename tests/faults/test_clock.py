"""The clock is set to another year while a model answers and between: nothing notices but what tells the time.

By libfaketime (Debian: libfaketime), under which a file says what time it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ended_commands import run
from tiny_models import HYBRID_ATTENTION, make_store, tiny_config

pytestmark = pytest.mark.slow
YEARS = ("1970-01-02 00:00:01", "2038-01-19 03:14:08", "2001-09-09 01:46:40", "2100-02-28 23:59:59")
PATIENCE_SEC = 300


def faketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Clock:
    def __init__(self, library: Path, file: Path) -> None:
        self.file = file
        self.environment = {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as Linux has it: setting the clock leaves it alone
        }  # fmt: skip

    def set(self, date: str) -> None:
        self.file.with_suffix(".new").write_text(f"@{date}\n")
        self.file.with_suffix(".new").replace(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    library = faketime()
    if library is None:
        pytest.skip("needs libfaketime")
    found = Clock(library, tmp_path / "clock")
    found.set(YEARS[0])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tiny_config(**HYBRID_ATTENTION), tmp_path_factory.mktemp("clock"), "q4_0")[0].parent


@pytest.fixture
def served(place: Path, clock: Clock, tmp_path: Path) -> Iterator[httpx.Client]:
    words = f"serve {place / 'store'} --port 0 --json --kv-dir {tmp_path / 'kept'} --parallel 2"
    environment = os.environ | clock.environment | {"SMALLTHINKER_MODELS": str(tmp_path)}
    command = [sys.executable, "-m", "smallthinker", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        with httpx.Client(base_url=json.loads(process.stdout.readline())["url"], timeout=PATIENCE_SEC) as client:
            yield client
        process.terminate()


def test_a_server_answers_as_ever_whatever_year_it_becomes_meanwhile(served: httpx.Client, clock: Clock) -> None:
    asked: dict[str, Any] = {"prompt": "hello", "max_tokens": 60, "temperature": 0, "stream": True}
    answers, created = [], set()
    for turn in range(2 * len(YEARS)):
        with served.stream("POST", "/v1/completions", json=asked) as answer:
            assert answer.status_code == 200
            text = ""
            for number, line in enumerate(line for line in answer.iter_lines() if line.startswith("data: {")):
                if number in (1, 20):
                    clock.set(YEARS[(turn + number) % len(YEARS)])
                event = json.loads(line.removeprefix("data: "))
                created.add(event["created"])
                text += event["choices"][0]["text"]
            answers.append(text)
        assert served.get("/health").status_code == served.get("/api/tags").status_code == 200
    assert len({*answers}) == 1 and answers[0]
    assert max(created) - min(created) > 10**9  # the clock was another one


@pytest.mark.parametrize("date", YEARS)
def test_a_command_does_its_work_in_any_year(date: str, place: Path, clock: Clock, tmp_path: Path) -> None:
    clock.set(date)
    models, text = tmp_path / "models", tmp_path / "text"
    models.mkdir()
    text.write_text("a text " * 60)
    environment = os.environ | clock.environment | {"SMALLTHINKER_MODELS": str(models)}
    said = "run {} --max-tokens 8 --temperature 0 --raw hello"
    for words in (
        f"convert {place / 'checkpoint'} {models / 'tiny'}", said.format("tiny"), "alias tiny short", "list",
        f"trace tiny --text {text} -o {tmp_path / 'trace'}", "verify tiny",
    ):  # fmt: skip
        command = [sys.executable, "-m", "smallthinker", *words.split()]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == 0, (words, ended)
        if words.startswith("run"):
            assert ended.stdout == run(said.format(models / "tiny"), tmp_path).out
