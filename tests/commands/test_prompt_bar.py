"""A long prompt says how far it has been read, on a terminal alone, and leaves nothing behind."""

from __future__ import annotations

import io

import pytest

from smallthinker import terminal
from smallthinker.cli import main
from smallthinker.commands import models
from smallthinker.commands.options import ProgressBar
from smallthinker.expert_store.progress import Progress
from smallthinker.terminal import PromptBar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(terminal, "bar_stream", lambda: screen)
    monkeypatch.setattr(terminal, "_SHOWN_AFTER_SEC", 0.0)
    return screen


def test_it_is_drawn_and_taken_away(screen: Screen) -> None:
    bar = PromptBar()
    bar(300, 1000)
    drawn = screen.getvalue()
    assert "reading the prompt: 300 of 1000 tokens" in drawn and "left" in drawn
    bar.close()
    assert screen.getvalue().removeprefix(drawn).strip("\r ") == ""  # spaces over it
    cleared = screen.getvalue()
    bar(400, 1000)  # the answer has begun
    bar.close()
    assert screen.getvalue() == cleared != drawn


def test_a_short_prompt_gets_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SHOWN_AFTER_SEC", 1e9)
    bar = PromptBar()
    bar(300, 1000)
    bar.close()
    assert screen.getvalue() == ""


def test_a_file_gets_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screen, "isatty", lambda self: False)
    bar = PromptBar()
    bar(300, 1000)
    bar.close()
    assert screen.getvalue() == ""


def test_a_quiet_one_and_a_quiet_progress_bar_show_nothing(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    bar = PromptBar(quiet=True)
    bar(300, 1000)
    bar.close()
    with ProgressBar("loading", quiet=True) as progress:
        progress(300, 1000, "bytes")
    assert screen.getvalue() == "" and capsys.readouterr().err == ""


def test_loading_is_told_to_a_bar_up_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    class Told(ProgressBar):
        def __enter__(self) -> Progress:
            assert self._what == "loading"
            return lambda done, total, what: told.append((done, total))

    monkeypatch.setattr(models, "ProgressBar", Told)
    assert main(["run", "Once", "--max-tokens", "1"]) == 0
    assert told and told[-1][0] == told[-1][1] > 1 << 20
