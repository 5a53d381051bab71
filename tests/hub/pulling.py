"""What the tests of pulling share: a hub of their own, as the engine and as a command see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked_command
from hub_server import FakeHub

from smallthinker.hub.repository import Hub

REPO = "somebody/tiny"


def connect(fake: FakeHub, repo: str = REPO, **options: Any) -> Hub:
    return Hub(repo, endpoint=fake.url, pause=lambda _: None, **options)


def store_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "manifest.json"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "smallthinker", "pull", *args]


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return clean | {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url, "SMALLTHINKER_MODELS": str(folder)}


def smallthinker(hub: FakeHub, folder: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    return forked_command.smallthinker("pull", *args, env=environment(hub, folder) | more, cwd=folder)
