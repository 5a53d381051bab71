"""What examples need: somebody who runs them, a server, a screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, User

from smallthinker.llm import DEMO_STORE


@pytest.fixture
def user(tmp_path: Path) -> User:
    """With the examples, a store and some letters, and `python`, `smallthinker`, `llm` and `uvicorn` on the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    modules = {"python": "", "smallthinker": "-m smallthinker", "llm": "-m llm", "uvicorn": "-m uvicorn"}
    for name, module in modules.items():
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "4b-store").symlink_to(DEMO_STORE)
    letters = folder / "letters"
    letters.mkdir()
    (letters / "short.txt").write_text("Dear mother, the sea is calm and we have seen no ship for a week.\n")
    (letters / "long.md").write_text(
        "\n\n".join(f"On day {day} the captain wrote that all was well." for day in range(150))
    )
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "HF_HOME": str(tmp_path / "hub"),
    }
    return User(folder, environment)


@pytest.fixture
def server_url(user: User) -> Iterator[str]:
    """Of `smallthinker serve` with the demo model."""
    pytest.importorskip("smallthinker.server.app", reason="needs smallthinker[serve]")
    command = ("smallthinker", "serve", "--port", "0", "--json", "--memory", "1GiB")
    with user.running(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]


@pytest.fixture
def screen(user: User) -> Iterator[None]:
    """A screen that nobody sees."""
    pytest.importorskip("tkinter", reason="this Python has no Tk (Debian: python3-tk)")
    reading, writing = os.pipe()
    try:
        command = ("Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24", "-nolisten", "tcp")
        process = subprocess.Popen(command, pass_fds=(writing,), stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("no Xvfb on this machine (Debian: xvfb)")
    os.close(writing)
    with process, os.fdopen(reading) as numbers:
        user.environment["DISPLAY"] = f":{numbers.readline().strip()}"
        yield
        process.terminate()
