"""Models by name: what lies in the models folder, and what of it has which name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallthinker.errors import ModelNotFoundError, RequestError
from smallthinker.library import Library, models_folder
from smallthinker.library.facts import facts_of
from smallthinker.llm import DEMO_STORE

STORE = ("config.json", "dense.safetensors", "experts.safetensors", "tokenizer.json")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "models").mkdir()
    return Library(tmp_path / "models")


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * 10)
    return folder


def kinds(library: Library) -> dict[str, str]:
    return {model.name: model.kind for model in library.models()}


def test_an_empty_or_missing_folder_has_the_demo(library: Library, tmp_path: Path) -> None:
    assert [model.name for model in library.models()] == ["demo"]
    nowhere = Library(tmp_path / "nowhere")
    assert nowhere.find("demo").path == DEMO_STORE
    nowhere.mark_used(DEMO_STORE)
    assert not nowhere.folder.exists()


def test_stores_files_and_folders_of_folders_are_found_by_name(library: Library) -> None:
    put(library.folder / "4b-store", *STORE)
    put(library.folder, "a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "notes.txt", "mmproj-a.gguf")
    put(library.folder / "Owner" / "Name-GGUF", "c-Q4_K_M.GGUF")
    put(library.folder / "weights", "config.json", "model.safetensors")
    assert kinds(library) == {
        "demo": "store",
        "4b-store": "store",
        "a": "gguf",
        "b": "gguf",
        "c-Q4_K_M": "gguf",
        "weights": "checkpoint",
    }
    assert library.find("b").path.name == "b-00001-of-00002.gguf" and library.find("b").nbytes == 20
    assert library.find("C-q4_k_m").path.name == "c-Q4_K_M.GGUF"  # clear in either case
    assert "weights" not in library.names()


def test_what_is_not_whole_is_listed_as_such(library: Library) -> None:
    digest = "0123456789abcdef"
    put(library.folder / "A-GGUF", f"A-Q8_0.gguf.{digest}.part")
    put(library.folder / "B-q4.download", ".smallthinker-pull", "config.json")
    put(library.folder / f".C-q4.partial-{digest}", "dense.safetensors")
    put(library.folder, "D-00001-of-00003.gguf", f"D-00002-of-00003.gguf.{digest}.part")
    put(library.folder, "E.gguf", f"E.gguf.{digest}.part")  # whole; a newer one was on its way
    found = kinds(library)
    assert {name: kind for name, kind in found.items() if kind == "partial"} == dict.fromkeys(
        ("A-Q8_0", "B-q4", "C-q4", "D"), "partial"
    )
    assert found["E"] == "gguf" and library.find("D").nbytes == 20


def test_two_of_one_name_are_told_apart_by_their_folders(library: Library) -> None:
    put(library.folder / "a", "m.gguf")
    put(library.folder / "b", "m.gguf")
    put(library.folder / "c" / "demo", *STORE)
    assert list(kinds(library)) == ["demo", "b/m", "c/demo", "m"]
    assert library.find("demo").path == DEMO_STORE


def test_a_name_that_is_not_found_says_which_there_are_and_the_closest(library: Library) -> None:
    put(library.folder, "smollm2.gguf", "qwen.gguf")
    with pytest.raises(ModelNotFoundError, match=r"'smolm2'.*did you mean smollm2\? There are demo, qwen, smollm2"):
        library.find("smolm2")
    assert library.close_to("Once upon a time") is None


def test_an_alias_names_a_model_of_the_folder_or_one_elsewhere(library: Library, tmp_path: Path) -> None:
    put(library.folder, "smollm2.gguf")
    elsewhere = put(tmp_path / "store", *STORE)
    library.set_alias("s", "smollm2")
    library.set_alias("mine", elsewhere)
    assert library.find("s").name == "smollm2" and library.find("s").aliases == ("s",)
    assert library.find("mine").path == elsewhere and library.find("mine").is_outside
    library.set_alias("other", "mine")
    assert library.find("other").path == elsewhere
    assert library.remove_alias("s") and not library.remove_alias("s")
    with pytest.raises(ModelNotFoundError):
        library.find("s")
    (elsewhere / STORE[0]).unlink()
    assert "mine" not in kinds(library)


@pytest.mark.parametrize("alias", ["", "a/b", "..", "-m", "x.gguf", "demo", "smollm2", "SMOLLM2", "a\nb", "n" * 200])
def test_an_alias_is_a_plain_new_name(library: Library, alias: str) -> None:
    put(library.folder, "smollm2.gguf")
    with pytest.raises(RequestError):
        library.set_alias(alias, "smollm2")


def test_when_a_model_was_last_used_is_kept_if_that_can_be(library: Library, tmp_path: Path) -> None:
    put(library.folder, "a.gguf")
    assert library.find("a").last_used is None
    library.mark_used(library.folder / ".." / "models" / "a.gguf")
    assert library.find("a").last_used is not None
    library.mark_used(tmp_path / "no-model")
    (tmp_path / "files" / "models").mkdir(parents=True)
    broken = Library(tmp_path / "files" / "models")
    put(broken.folder, "a.gguf", ".smallthinker")  # a file where the folder of such facts would be
    broken.mark_used(broken.folder / "a.gguf")
    assert broken.find("a").last_used is None


@given(st.binary(max_size=60))
def test_whatever_an_alias_file_holds_the_other_models_are_listed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = put(tmp_path_factory.mktemp("models"), "a.gguf")
    (put(folder / ".smallthinker" / "aliases") / "x").write_bytes(content)
    assert {"demo", "a"} <= set(kinds(Library(folder)))


def test_the_folder_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMALLTHINKER_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    monkeypatch.delenv("SMALLTHINKER_MODELS")
    assert models_folder().is_absolute() and models_folder().name == "models"


def test_facts_of_a_model_are_kept_until_its_files_change(
    hybrid_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts = facts_of(hybrid_store)
    assert facts.quant == "q4_0" and facts.parameters > 0 and 0 < facts.floor_bytes <= facts.full_bytes
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_bytes(kept.read_bytes().replace(b'"q4_0"', b'"kept"'))
    assert facts_of(hybrid_store).quant == "kept"
    kept.write_bytes(b"{}")
    assert facts_of(hybrid_store).quant == "q4_0"
