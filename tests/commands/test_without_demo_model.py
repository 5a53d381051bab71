"""A wheel of the engine comes without the demo model: what needs one says in a line how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallthinker import demo, llm
from smallthinker.cli import main
from smallthinker.diagnosis.doctor import diagnose
from smallthinker.errors import StoreFormatError
from smallthinker.library import library, resolve


@pytest.fixture(autouse=True)
def without_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (llm, demo, library, resolve):
        monkeypatch.setattr(module, "DEMO_STORE", tmp_path / "smallthinker_demo" / "store")


@pytest.mark.parametrize("command", [["run", "Once"], ["inspect"], ["plan"]])
def test_a_command_without_a_model_names_the_demo_s_package(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "install this one's wheel, smallthinker_demo" in error and "name a model" in error


def test_the_library_lists_no_demo_and_says_by_its_name_how_to_get_it(tmp_path: Path) -> None:
    models = library.Library(tmp_path)
    assert models.models() == []
    with pytest.raises(StoreFormatError, match="smallthinker_demo"):
        models.find("Demo")


def test_doctor_only_warns_that_it_tried_no_answer() -> None:
    facts = diagnose()
    assert facts["would_run"]
    assert any("smallthinker_demo" in finding["remedy"] for finding in facts["findings"])
