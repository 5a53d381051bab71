"""Every block of code in docs/embedding.md, run as it stands in a folder with the examples and a store."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from hub_server import FakeHub
from processes import ROOT, User

DOC = ROOT / "docs" / "embedding.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.mark.parametrize("code", PYTHON, ids=[str(n) for n in range(len(PYTHON))])
def test_each_python_block_runs_and_prints_something(user: User, code: str) -> None:
    if "hub" in code:
        pytest.importorskip("huggingface_hub", reason="needs smallthinker[hub]")
    (user.folder / "block.py").write_text(code, encoding="utf-8")
    with FakeHub() as hub:  # with no models; nothing here may look for a network
        assert user.run("python", "block.py", HF_ENDPOINT=hub.url).strip()


def test_the_server_is_started_from_another_language(user: User) -> None:
    pytest.importorskip("smallthinker.server.app", reason="needs smallthinker[serve]")
    if shutil.which("node") is None:
        pytest.skip("no node on this machine")
    (code,) = (code for language, code in BLOCKS if language == "js")
    (user.folder / "block.js").write_text(code, encoding="utf-8")
    assert len(user.run("node", "block.js").strip()) > 10


def test_the_llm_commands_run(user: User) -> None:
    pytest.importorskip("llm", reason="needs smallthinker[llm]")
    (commands,) = (code for language, code in BLOCKS if language == "sh" and code.startswith("llm"))
    printed = [user.run("sh", "-c", command).strip() for command in commands.splitlines()]
    assert len(printed) == 3 and all(printed)


def test_every_example_is_in_the_table_and_parses_and_its_commands_are_those_that_are_tested() -> None:
    files = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]\(\.\./examples/\1\)", DOC.read_text(), re.MULTILINE)) == files
    (commands,) = (code for language, code in BLOCKS if language == "sh" and "tk_chat" in code)
    tested = Path(__file__).with_name("test_examples.py").read_text()
    for name in files:
        ast.parse((ROOT / "examples" / name).read_text())
        assert Path(name).stem in commands and Path(name).stem in tested
