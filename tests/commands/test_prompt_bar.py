"""A long prompt says how far it has been read, on a terminal alone, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator

import pytest

from smallthinker import terminal
from smallthinker.terminal import PromptBar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard error is a terminal; what reads its other end."""
    near, far = pty.openpty()
    with os.fdopen(far, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        yield near
    os.close(near)


def test_it_is_drawn_and_taken_away(screen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SHOWN_AFTER_SEC", 0.0)
    bar = PromptBar()
    bar(300, 1000)
    drawn = os.read(screen, 4096).decode()
    assert "reading the prompt: 300 of 1000 tokens" in drawn and "left" in drawn
    bar.close()
    assert os.read(screen, 4096).decode().strip(" \r\x1b[A") == ""
    bar(400, 1000)  # the answer has begun
    bar.close()
    print("that was all", file=sys.stderr, flush=True)
    assert os.read(screen, 4096).decode().strip() == "that was all"


def test_a_short_prompt_gets_nothing(screen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SHOWN_AFTER_SEC", 1e9)
    bar = PromptBar()
    bar(300, 1000)
    bar.close()
    print("that was all", file=sys.stderr, flush=True)
    assert os.read(screen, 4096).decode().strip() == "that was all"


def test_a_file_gets_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "_SHOWN_AFTER_SEC", 0.0)
    bar = PromptBar()
    bar(300, 1000)
    bar.close()
    assert capsys.readouterr().err == ""
