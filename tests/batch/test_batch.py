"""`smallthinker batch`: what comes of a table, in every format, and what ends a job or only a row of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_store, tiny_config

from smallthinker import LLM
from smallthinker.batch.job import row_seed
from smallthinker.cli import main
from smallthinker.errors import StoreReadError
from smallthinker.generation.scheduler import Scheduler

TEMPLATE = ["--prompt-template", "Of {name}: {text}", "--max-tokens", "6", "--raw"]
ROWS = [{"name": f"row {i}", "text": "said so " * (i % 4), "number": i} for i in range(9)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tiny_config(head_dim=32), tmp_path_factory.mktemp("batch"), "q4_0")[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", ROWS)
    return tmp_path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def batch(model: Path, source: str, output: str, *options: str) -> int:
    return main(["batch", str(model), source, output, *options])


def test_every_row_gets_the_text_that_it_gets_alone_in_the_input_s_order(place: Path, model: Path) -> None:
    assert batch(model, "in.jsonl", "out.jsonl", *TEMPLATE, "--seed", "7") == 0
    found = read_lines(place / "out.jsonl")
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    with LLM(model) as llm:
        for index, row in enumerate(found):
            prompt = f"Of {row['name']}: {row['text']}"
            alone = llm.generate(prompt, max_tokens=6, seed=row_seed(7, index))
            assert (row["output"], row["finish_reason"]) == (alone.text, alone.finish_reason)
            assert (row["prompt_tokens"], row["error"]) == (alone.stats.prompt_tokens, None)
    assert [path.name for path in place.iterdir() if path.name.startswith("out")] == ["out.jsonl"]


@pytest.mark.parametrize("parallel", ["1", "3"])
def test_no_text_depends_on_how_many_are_computed_at_once(place: Path, model: Path, parallel: str) -> None:
    batch(model, "in.jsonl", "out.jsonl", *TEMPLATE)
    batch(model, "in.jsonl", "other.jsonl", *TEMPLATE, "--parallel", parallel)
    assert (place / "out.jsonl").read_bytes() == (place / "other.jsonl").read_bytes()


def test_every_format_goes_in_and_out(place: Path, model: Path) -> None:
    pytest.importorskip("pyarrow")
    assert batch(model, "in.jsonl", "a.parquet", *TEMPLATE) == 0
    assert batch(model, "in.jsonl", "a.csv", *TEMPLATE) == 0
    again = ["--prompt-template", "{output}", "--max-tokens", "3", "--column", "second"]
    for source in ("a.parquet", "a.csv"):
        for end in (".jsonl", ".csv", ".parquet"):
            assert batch(model, source, f"{source}{end}", *again) == 0
    from pyarrow import parquet

    expected = read_lines(place / "a.parquet.jsonl")
    assert parquet.read_table(place / "a.parquet.parquet").to_pylist() == expected
    assert [row["number"] for row in expected] == list(range(9))
    assert {"output", "second", "second_error", "second_completion_tokens"} <= set(expected[0])
    with (place / "a.csv.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["second"] for row in table] == [row["second"] for row in expected]
    assert parquet.read_table(place / "a.csv.parquet").to_pylist()[3]["second"] == expected[3]["second"]


def test_a_folder_of_texts_becomes_a_folder_of_texts_or_a_table(place: Path, model: Path) -> None:
    (place / "in").mkdir()
    for name in ("b.txt", "a.md", ".hidden"):
        (place / "in" / name).write_text(f"text of {name}")
    options = ["--prompt-template", "{text}", "--max-tokens", "4"]
    assert batch(model, "in", "out", *options) == 0 and batch(model, "in", "out.jsonl", *options) == 0
    table = read_lines(place / "out.jsonl")
    assert [row["file"] for row in table] == ["a.md", "b.txt"]
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == {
        row["file"]: row["output"].encode("utf-8", "backslashreplace") for row in table
    }


def test_results_load_in_pandas(place: Path, model: Path) -> None:
    pandas = pytest.importorskip("pandas")
    batch(model, "in.jsonl", "out.jsonl", *TEMPLATE)
    table = pandas.read_json(place / "out.jsonl", lines=True)
    assert list(table["number"]) == list(range(9)) and "output" in table


def test_a_row_that_fails_has_its_error_and_the_others_their_answers(
    place: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(place / "in.jsonl", [ROWS[1], ROWS[2] | {"text": "long " * 400}, {"text": "nameless"}, ROWS[3]])
    assert batch(model, "in.jsonl", "out.jsonl", *TEMPLATE, "--context", "64") == 1
    found = read_lines(place / "out.jsonl")
    assert "don't fit" in found[1]["error"] and "no column 'name'" in found[2]["error"]
    assert [row["error"] is None for row in found] == [True, False, False, True]
    assert found[1]["output"] is None and found[0]["completion_tokens"] == 6
    assert "2 with errors" in capsys.readouterr().err
    assert batch(model, "in.jsonl", "texts", *TEMPLATE, "--context", "64") == 1
    assert sorted(path.suffix for path in (place / "texts").iterdir()) == [".error", ".error", ".txt", ".txt"]


def test_errors_of_all_rows_end_the_job_and_none_of_them_is_kept(
    place: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(place / "in.jsonl", [row | {"text": "long " * 400} for row in ROWS] + ROWS)
    options = [*TEMPLATE, "--context", "64"]
    assert batch(model, "in.jsonl", "out.jsonl", *options, "--max-errors", "4") == 2
    said = capsys.readouterr().err
    assert "rows one after another failed" in said and said.count("\n") == 1
    assert len((place / "out.jsonl.journal").read_bytes().splitlines()) <= 1 + len(ROWS)
    assert batch(model, "in.jsonl", "out.jsonl", *options) == 1
    assert [row["error"] is None for row in read_lines(place / "out.jsonl")] == [False] * 9 + [True] * 9


def test_a_disk_that_fails_ends_the_job_and_the_next_goes_on(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch(model, "in.jsonl", "whole.jsonl", *TEMPLATE)
    submit, asked = Scheduler.submit, []

    def failing(self: Scheduler, prompt: Any, *args: Any, **options: Any) -> Any:
        asked.append(prompt)
        if len(asked) == 4:
            raise StoreReadError("experts.safetensors: cannot be read: Input/output error")
        return submit(self, prompt, *args, **options)

    monkeypatch.setattr(Scheduler, "submit", failing)
    assert batch(model, "in.jsonl", "out.jsonl", *TEMPLATE, "--parallel", "1") == 2
    assert "Input/output error" in capsys.readouterr().err
    assert not (place / "out.jsonl").exists()
    kept = len((place / "out.jsonl.journal").read_bytes().splitlines()) - 1
    monkeypatch.setattr(Scheduler, "submit", submit)
    assert batch(model, "in.jsonl", "out.jsonl", *TEMPLATE, "--json") == 0
    assert json.loads(capsys.readouterr().out)["already_done"] == kept
    assert (place / "out.jsonl").read_bytes() == (place / "whole.jsonl").read_bytes()


def test_what_rows_begin_with_is_computed_once(place: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt-template", f"{'rule ' * 20}{{name}}", "--max-tokens", "2", "--json"]
    assert batch(model, "in.jsonl", "out.jsonl", *options) == 0
    figures = json.loads(capsys.readouterr().out)
    shared = 100  # characters, each a token
    assert figures["at_once"] == len(ROWS) and figures["reused_tokens"] >= (len(ROWS) - 1) * shared


def test_a_chat_s_model_is_asked_by_its_template(place: Path, model: Path) -> None:
    options = ["--prompt-template", "Of {name}: {text}", "--max-tokens", "6", "--system", "Be brief"]
    assert batch(model, "in.jsonl", "out.jsonl", *options) == 0
    row = read_lines(place / "out.jsonl")[5]
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": f"Of row 5: {ROWS[5]['text']}"}]
    with LLM(model) as llm:
        alone = llm.chat(messages, max_tokens=6, seed=row_seed(0, 5))
    assert (row["output"], row["prompt_tokens"]) == (alone.text, alone.stats.prompt_tokens)


def test_answers_keep_to_a_schema(place: Path, model: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    (place / "schema.json").write_text(json.dumps(schema))
    options = ["--prompt-template", "{text}", "--max-tokens", "60", "--schema", "schema.json"]
    assert batch(model, "in.jsonl", "out.jsonl", *options) == 0
    for row in read_lines(place / "out.jsonl"):
        assert row["finish_reason"] == "length" or type(json.loads(row["output"])["n"]) is int


@pytest.mark.parametrize(
    ("write", "options", "says"),
    [
        (lambda p: None, ["--prompt-template", "{nam} {text}"], "no column 'nam'; the input has 'name', 'text'"),
        (lambda p: None, ["--prompt-template", "{text"], "a single { at character 0"),
        (lambda p: None, [], "prompt_template: expected one"),
        (lambda p: None, [*TEMPLATE, "--column", "text"], "has a column 'text' already; give --column"),
        (lambda p: None, [*TEMPLATE, "--raw", "--system", "Be brief"], "leave --raw out"),
        (lambda p: p.write_text('{"text": 1}\n[1]\n'), TEMPLATE, "in.jsonl, line 2: expected a JSON object, found [1]"),
        (lambda p: p.write_text('{"text": 1}\n{"a"\n'), TEMPLATE, "in.jsonl, line 2: expected a JSON object"),
        (lambda p: p.write_text(""), ["--prompt-template", "x"], "in.jsonl: expected rows, found none"),
        (lambda p: p.unlink(), TEMPLATE, "in.jsonl: cannot be read: No such file"),
        (lambda p: (p.parent / "out.jsonl").write_text("mine"), TEMPLATE, "out.jsonl: cannot write: exists already"),
        (lambda p: (p.parent / "out.jsonl.journal").write_text("mine"), TEMPLATE, "found another file; move it"),
    ],
)  # fmt: skip
def test_what_can_t_be_right_is_told_in_a_line_before_anything_is_computed(
    place: Path,
    model: Path,
    write: Callable[[Path], object],
    options: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(place / "in.jsonl")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    monkeypatch.setattr("smallthinker.llm.LLM", None)
    assert batch(model, "in.jsonl", "out.jsonl", *options) == 2
    said = capsys.readouterr().err
    assert said.replace("--prompt-template: ", "prompt_template: ").find(says) >= 0, said
    assert said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,name\n1,2\n", "line 1: expected columns' names"),
        (b"name,text\n1\n", "line 2: expected 2 values, found 1"),
        (b"name,text\n1,\xff\n", "expected CSV in UTF-8"),
        (b'name,text\n1,"a\n', "expected CSV"),
    ],
)
def test_csv_that_is_none_is_refused_by_its_place(
    place: Path, model: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "in.csv").write_bytes(content)
    assert batch(model, "in.csv", "out.jsonl", *TEMPLATE) == 2
    assert says in capsys.readouterr().err


def test_parquet_says_what_to_install(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (place / "in.parquet").write_bytes(b"PAR1")
    for source, output in (("in.parquet", "out.jsonl"), ("in.jsonl", "out.parquet")):
        assert batch(model, source, output, *TEMPLATE) == 2
        assert "pip install 'smallthinker[batch]'" in capsys.readouterr().err
    assert batch(model, "in.jsonl", "out.jsonl", *TEMPLATE) == 0
