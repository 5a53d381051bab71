"""A batch that is killed at any moment and given again: the same file as without, each row once."""

from __future__ import annotations

import json
import random
import zlib
from itertools import count
from pathlib import Path

import pytest
from ended_commands import KILLED, run
from tiny_models import make_store, tiny_config

COMMAND = "batch store in.jsonl out.{} --prompt-template {{text}} --raw --max-tokens 4 --json"
ROWS = 40


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store, _ = make_store(tiny_config(head_dim=32), tmp_path / "made", "q4_0")
    store.rename(tmp_path / "store")
    with (tmp_path / "in.jsonl").open("w") as file:
        for i in range(ROWS):
            file.write(json.dumps({"text": f"text number {i % 7}", "i": i}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("end", "moments"), [("jsonl", 4), *(pytest.param(e, 25, marks=pytest.mark.slow) for e in ("jsonl", "csv"))]
)
def test_kills_at_any_moment_and_the_same_command_give_the_same_file(place: Path, end: str, moments: int) -> None:
    output, journal, command = place / f"out.{end}", place / f"out.{end}.journal", COMMAND.format(end)
    whole = run(command, place)
    assert whole.code == 0, whole
    expected, rng = output.read_bytes(), random.Random(end)
    output.unlink()
    killed, known, seconds = 0, b"", whole.seconds
    for moment in count():
        if killed and moment >= moments:
            break
        ended = run(command, place, killed_after_sec=rng.uniform(0.3, 1.1) * seconds)
        assert ended.code in (0, KILLED), ended
        killed += ended.code == KILLED
        if output.exists():
            assert output.read_bytes() == expected
        if ended.code == 0 or (output.exists() and not journal.exists()):  # killed when it was done
            output.unlink()
            assert not journal.exists()
            known, seconds = b"", min(seconds, ended.seconds)
        elif journal.exists():
            now = journal.read_bytes()
            assert now.startswith(known[: known.rfind(b"\n") + 1])  # nothing that is durable is lost or done again
            known = now
    done = known.count(b"\n") - 1 if known else 0
    last = run(command, place)
    assert last.code == 0, last
    assert output.read_bytes() == expected
    assert json.loads(last.out)["already_done"] == max(done, 0)
    assert not journal.exists()


def test_another_template_is_refused_in_one_line_and_force_begins_anew(place: Path) -> None:
    command = COMMAND.format("jsonl")
    whole = run(command, place)
    journal = place / "out.jsonl.journal"
    rng, seconds = random.Random(0), whole.seconds
    while not journal.exists():
        (place / "out.jsonl").unlink(missing_ok=True)
        ended = run(command, place, killed_after_sec=rng.uniform(0.3, 1) * seconds)
        seconds = min(seconds, ended.seconds or seconds)
    row = b'[0,{"text":"one that is done","error":null}]'
    with journal.open("ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(row), row))
    other = run(command.replace("{text}", "{text}!"), place)
    assert other.code == 2 and other.err.count("\n") == 1
    assert "begun with another --prompt-template ('{text}', now '{text}!')" in other.err
    (place / "in.jsonl").write_text('{"text": "another", "i": 0}\n')
    other = run(command, place)
    assert other.code == 2 and "begun with another INPUT" in other.err
    assert run(f"{command} --force", place).code == 0
    assert not journal.exists()
