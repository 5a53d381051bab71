"""Models by name, as somebody at a shell has them: in an empty folder, with a models folder beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_models import make_store, tiny_config

from smallthinker.cli import main
from smallthinker.demo import DEMO_STORE

SHORT = ("--max-tokens", "3", "--seed", "1")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hybrid_store: Path) -> Path:
    """A models folder with one store, `tiny`; the working folder is another."""
    folder, here = tmp_path / "models", tmp_path / "here"
    here.mkdir()
    shutil.copytree(hybrid_store, folder / "tiny")
    monkeypatch.setenv("SMALLTHINKER_MODELS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(here)
    return folder


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: str, code: int = 0) -> str:
        """What it printed: standard output of a success, the one line of an error."""
        try:
            found = main(list(args))
        except SystemExit as e:
            found = e.code  # type: ignore[assignment]
        said = self._capsys.readouterr()
        assert found == code, said
        if code == 0:
            return said.out
        assert said.out == "" and said.err.count("\n") == 1, said
        return said.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_name_a_path_and_minus_m_are_the_same_model(models: Path, shell: Shell) -> None:
    answers = {
        shell(*words, *SHORT)
        for words in (
            ("run", "tiny", "hello"),
            ("run", "-m", "tiny", "hello"),
            ("run", "-m", "TINY", "hello"),
            ("run", str(models / "tiny"), "hello"),
        )
    }
    assert len(answers) == 1
    assert json.loads(shell("run", "tiny", "hello", "--json", *SHORT))["text"] + "\n" in answers
    assert shell("run", "hello", *SHORT) not in answers  # the demo's
    assert shell("run", "demo", "hello", *SHORT) == shell("run", "-m", str(DEMO_STORE), "hello", *SHORT)


def test_list_and_show_say_what_there_is(models: Path, shell: Shell) -> None:
    (models / "half.gguf.0123456789abcdef.part").write_bytes(b"x" * 3000000)
    shell("alias", "tiny", "t")
    shell("run", "t", "hello", *SHORT)
    lines = shell("list").splitlines()
    assert lines[0].split() == ["NAME", "FAMILY", "SIZE", "FORMAT", "MEMORY", "LAST", "USED"]
    assert lines[1].startswith("demo ") and "15-million-parameter writer of old prose" in shell("list")
    assert any(line.startswith("half ") and "not whole" in line and "2.9 MiB" in line for line in lines)
    assert any(line.startswith("tiny (t) ") and line.endswith("just now") and "q4_0, store" in line for line in lines)
    listed = {model["name"]: model for model in json.loads(shell("list", "--json"))["models"]}
    assert listed["tiny"]["floor_bytes"] > 0 and listed["half"]["kind"] == "partial"
    assert "tiny, also t" in shell("show", "t") and "q4_0" in shell("inspect", "tiny")
    assert json.loads(shell("show", "tiny", "--json"))["aliases"] == ["t"]


def test_an_alias_that_names_another_model_now_says_what_it_named(models: Path, shell: Shell, tmp_path: Path) -> None:
    outside = shutil.copytree(models / "tiny", tmp_path / "outside")
    assert shell("alias", "tiny", "four") == "four: another name of tiny\n"
    assert shell("alias", "tiny", "four") == "four: another name of tiny\n"
    assert shell("alias", str(outside), "four") == f"four names {outside} now; it named tiny\n"
    assert shell("alias", "tiny", "four") == f"four names tiny now; it named {outside}\n"
    shell("alias", str(outside), "five")
    shutil.rmtree(outside)
    assert shell("alias", "tiny", "five") == f"five names tiny now; it named {outside}\n"


def test_show_is_headed_by_the_alias_that_was_asked_for(models: Path, shell: Shell, tmp_path: Path) -> None:
    outside = shutil.copytree(models / "tiny", tmp_path / "outside")
    for name in ("far", "away"):
        shell("alias", str(outside), name)
    shell("run", "far", "hello", *SHORT)
    for name in ("far", "away"):
        shown = shell("show", name)
        assert shown.splitlines()[0] == name and "last used" in shown
        assert json.loads(shell("show", "-m", name.upper(), "--json"))["name"] == name
    assert shell("show", str(outside)).splitlines()[0] == "away"


def test_a_broken_model_is_listed_with_what_is_wrong(models: Path, shell: Shell) -> None:
    (models / "bad.gguf").write_bytes(b"garbage")
    assert "bad: byte 0: magic: expected GGUF" in shell("list")


def test_rm_asks_and_says_what_it_freed(models: Path, shell: Shell) -> None:
    size = sum(path.stat().st_size for path in (models / "tiny").iterdir())
    assert "--yes" in shell("rm", "tiny", code=2)
    assert (models / "tiny").is_dir()
    (models / "tiny" / "notes.txt").write_text("mine")
    assert json.loads(shell("rm", "tiny", "--yes", "--json"))["removed"] == [{"name": "tiny", "freed_bytes": size}]
    assert [path.name for path in (models / "tiny").iterdir()] == ["notes.txt"]  # what is no model's stays
    assert "there is demo" in shell("rm", "tiny", "--yes", code=2)
    assert "bundled" in shell("rm", "demo", "--yes", code=2)


def test_rm_takes_links_and_names_away_and_nothing_outside_the_folder(
    models: Path, shell: Shell, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(models / "tiny", outside)
    before = sorted(path.name for path in outside.iterdir())
    shell("alias", str(outside), "far")
    assert "stays" in shell("rm", "far", "--yes")
    (models / "linked").symlink_to(outside)
    (models / "files").mkdir()
    for path in outside.iterdir():
        (models / "files" / path.name).symlink_to(path)
    for name in ("linked", "files"):
        assert "stays" in shell("rm", name, "--yes")
    assert sorted(path.name for path in models.iterdir()) == [".smallthinker", "tiny"]
    assert sorted(path.name for path in outside.iterdir()) == before
    assert "no paths" in shell("rm", "../outside", "--yes", code=2)


def test_a_hard_link_frees_nothing(models: Path, shell: Shell, tmp_path: Path) -> None:
    for path in (models / "tiny").iterdir():
        os.link(path, tmp_path / path.name)
    assert "0.0 MiB freed; the rest has another name" in shell("rm", "tiny", "--yes")


def test_what_is_no_model_says_what_to_do(models: Path, shell: Shell, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    (hub / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for path, said in {
        hub: "architectures: missing; expected the one of smallthinker",
        tmp_path / "empty": "a folder without a model",
        tmp_path / "notes.txt": "a file that is no model",
        hub / "model.safetensors": "a file of weights; smallthinker convert",
        hub / "config.json": "smallthinker plan takes",
        models: "a folder of several models; give one of them: tiny",
        tmp_path / "gone.gguf": "nothing is there",
    }.items():
        assert said in shell("run", "-m", str(path), "hello", code=2)
    assert "did you mean tiny?" in shell("run", "tinny", "hello", code=2)
    assert "did you mean tiny?" in shell("chat", "tinny", code=2)
    assert "smallthinker chat tiny" in shell("run", "tiny", code=2)
    (models / "part.gguf.0123456789abcdef.part").write_bytes(b"x")
    assert "not whole" in shell("chat", "part", code=2)


def test_a_model_here_and_a_model_of_that_name_are_told_apart(models: Path, shell: Shell) -> None:
    shutil.copytree(models / "tiny", "tiny")
    assert "another one lies here; write ./tiny" in shell("run", "-m", "tiny", "hello", code=2)
    assert shell("run", "./tiny", "hello", *SHORT)
    shutil.rmtree("tiny")
    Path("tiny").mkdir()  # no model: nothing to be confused with
    assert shell("run", "tiny", "hello", *SHORT)


@pytest.mark.parametrize("words", [("show",), ("verify",), ("plan", "--memory", "1GiB", "--storage", "emmc"),
                                   ("doctor",), ("eval", "perplexity", "--text", "t", "--tokens", "20"),
                                   ("trace", "--text", "t", "-o", "o")])  # fmt: skip
def test_every_command_takes_a_name_and_minus_m(words: tuple[str, ...], models: Path, shell: Shell) -> None:
    Path("t").write_text("the sea was calm and the ship went on " * 3)
    assert shell(*words, "tiny")
    Path("o").unlink(missing_ok=True)
    assert shell(*words, "-m", "tiny")
    if words[0] != "eval":
        assert "expected one model" in shell(*words, "-m", "tiny", "tiny", code=2)


def test_a_folder_that_cannot_be_written_fails_no_run(models: Path, shell: Shell) -> None:
    (models / ".smallthinker").write_bytes(b"")  # a file where word of the last use would be kept
    assert shell("run", "tiny", "hello", *SHORT)
    assert "never" in shell("list")


def test_a_schema_is_kept_to_and_pictures_are_refused(models: Path, shell: Shell) -> None:
    pytest.importorskip("llguidance")
    Path("s").write_text(
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    assert json.loads(shell("run", "demo", "hello", "--schema", "s"))["n"] in (1, 2)
    Path("s").write_text("[")
    assert "s: expected a JSON schema" in shell("run", "demo", "hello", "--schema", "s", code=2)
    assert "pictures aren't read" in shell("run", "demo", "hello", "--image", "x.png", code=2)
    assert "a picture" in shell("run", "demo", "hello", "--file", "x.png", code=2)


def test_messages_of_the_library_get_the_commands_options(models: Path, shell: Shell) -> None:
    assert "--memory: 1 MiB is below the floor" in (said := shell("run", "tiny", "x", "--memory", "1MiB", code=2))
    assert "give --memory " in said and "a smaller --context" in said
    too_long = ("--max-tokens", "9999", "--context", "100")
    assert "a smaller --max-tokens or a larger --context" in shell("run", "tiny", "x", *too_long, code=2)
    assert "--top-p: " in shell("run", "tiny", "x", "--top-p", "7", code=2)
    assert "'rnu': no such command; did you mean run?" in shell("rnu", code=2)
    assert "'rum': no such command; did you mean run?" in shell("rum", code=2)
    assert "'r': no such command; did you mean rm?" in shell("r", code=2)
    assert "--seed: expected a command first" in shell("--seed", "1", "run", "x", code=2)


def test_a_short_name_of_what_could_be_pulled_is_no_prompt_for_the_demo(models: Path, shell: Shell) -> None:
    for words in (("run", "SmolLM2-135M", "hello"), ("run", "-m", "smollm2-135m", "hello"), ("chat", "smollm2-135m")):
        assert "not here yet; smallthinker pull smollm2-135m brings it" in shell(*words, code=2)
    shell("alias", "tiny", "smollm2-135m")
    assert shell("run", "smollm2-135m", "hello", *SHORT) == shell("run", "tiny", "hello", *SHORT)


def test_a_prompt_that_is_too_long_gets_advice_that_helps(models: Path, shell: Shell) -> None:
    said = shell("run", "demo", "word " * 2000, code=2)
    assert "new ones" not in said and said.endswith("give a shorter prompt\n")


def test_quiet_leaves_the_answer_alone(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", *SHORT, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out and said.err == ""
    assert main(["run", "hello", *SHORT, "--quiet", "--stats", "json"]) == 0
    assert json.loads(capsys.readouterr().err)["new_tokens"] == 3


def test_one_token_has_no_speed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", "--max-tokens", "1"]) == 0
    said = capsys.readouterr().err
    assert "1 new, peak memory" in said and "tokens/s" not in said


def test_what_is_measured_of_the_demo_is_called_demo(models: Path, shell: Shell) -> None:
    Path("text").write_text("Once upon a time.")
    assert json.loads(shell("trace", "--text", "text", "-o", "t.trace", "--json"))["model"] == "demo"
    assert json.loads(shell("trace", "tiny", "--text", "text", "-o", "u.trace", "--json"))["model"] == "tiny"


def test_a_hugging_face_folder_becomes_a_store_once(
    models: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_store(tiny_config(), tmp_path / "made")
    folder = Path("weights").absolute()
    shutil.move(tmp_path / "made" / "checkpoint", folder)

    def run(*words: str) -> tuple[str, str]:
        assert main(["run", *words, "--temperature", "0", *SHORT]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    text, said = run("./weights", "hello")
    assert f"weights: weights as a hub has them; once, a store is made of them: {models / 'weights'}" in said
    for words in (  # the name alone is no question: this folder, or the store that was made of it
        ["weights", "hello"], [str(folder), "hello"], ["-m", str(folder), "hello"],
        ["-m", str(models / "weights"), "hello"],
    ):  # fmt: skip
        again, said = run(*words)
        assert again == text and "once" not in said
    assert main(["show", str(folder)]) == 0 and "weights" in capsys.readouterr().out
    os.utime(folder / "model.safetensors", (0, 0))  # another one
    assert "once, a store is made of them" in run("weights", "hello")[1]
    (folder.parent / "tiny").symlink_to(folder)
    assert "once" not in run(str(folder.parent / "tiny"), "hello")[1]  # the same folder
    (models / "weights" / "experts.safetensors").unlink()
    assert run("./weights", "hello")[0] == text
    shutil.rmtree(models / "weights")
    shutil.copytree(models / "tiny", models / "weights")  # another model by that name
    before = (models / "weights" / "manifest.json").read_bytes()
    assert main(["run", "weights", "hello", *SHORT]) == 2 and "another one lies here" in capsys.readouterr().err
    assert f"{models / 'weights-store'}" in run("./weights", "hello")[1]
    assert (models / "weights" / "manifest.json").read_bytes() == before


def test_a_hugging_face_folder_is_never_put_in_anothers_place(
    models: Path, shell: Shell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_store(tiny_config(), tmp_path / "made")
    shutil.move(tmp_path / "made" / "checkpoint", "tiny")
    before = (models / "tiny" / "experts.safetensors").read_bytes()
    assert main(["run", "./tiny", "hello", *SHORT]) == 0
    assert f"{models / 'tiny-store'}" in capsys.readouterr().err
    assert (models / "tiny" / "experts.safetensors").read_bytes() == before
    shutil.copytree("tiny", "other")
    shutil.move("other", tmp_path / "tiny")
    assert "has another tiny; smallthinker convert" in shell("run", str(tmp_path / "tiny"), "hello", code=2)
    assert "weights as a hub has them" in shell("show", str(tmp_path / "tiny"), code=2)
    cached = tmp_path / "models--me--Small-1B" / "snapshots" / ("0" * 40)
    cached.parent.mkdir(parents=True)
    shutil.move(tmp_path / "tiny", cached)
    assert main(["run", str(cached), "hello", *SHORT]) == 0
    assert (models / "Small-1B" / "experts.safetensors").exists()
