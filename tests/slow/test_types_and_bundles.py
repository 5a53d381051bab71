"""What takes a type checker or a bundler minutes: the documented examples are typed, and a program can be bundled."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOC = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"
PYTHON = re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
APP = """
import json
import sys

from smallthinker import LLM, __version__

with LLM(memory="1GiB", context=512) as llm:
    answer = llm.chat([{"role": "user", "content": "Who?"}], max_tokens=5)
    heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"matplotlib", "torch", "transformers"})
    print(json.dumps([__version__, answer.text, list(llm.embed("x").shape), heavy]))
"""


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    for number, code in enumerate(PYTHON):
        (tmp_path / f"block{number}.py").write_text(code, encoding="utf-8")
    return tmp_path


def checked(blocks: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=blocks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_is_strict_with_the_documented_examples(blocks: Path) -> None:
    pytest.importorskip("mypy", reason="mypy isn't installed")
    checked(blocks, "mypy", "--strict", *(path.name for path in sorted(blocks.glob("*.py"))))


def test_pyright_is_strict_with_the_documented_examples(blocks: Path) -> None:
    pytest.importorskip("pyright", reason="pyright isn't installed")
    if shutil.which("node") is None:
        pytest.skip("pyright needs node, which this machine lacks")
    version = ".".join(map(str, sys.version_info[:2]))
    config = {"typeCheckingMode": "strict", "pythonVersion": version, "include": ["."]}
    (blocks / "pyrightconfig.json").write_text(json.dumps(config))
    checked(blocks, "pyright", "--pythonpath", sys.executable, "-p", ".")


def test_a_program_is_bundled_without_flags_and_takes_nothing_heavy_along(tmp_path: Path) -> None:
    pytest.importorskip("PyInstaller", reason="PyInstaller isn't installed")
    (tmp_path / "app.py").write_text(APP)
    checked(tmp_path, "PyInstaller", "--noconfirm", "--log-level", "ERROR", "app.py")
    inside = tmp_path / "dist" / "app" / "_internal"
    assert not {path.name for path in inside.iterdir()} & {"matplotlib", "torch", "transformers"}
    done = subprocess.run([tmp_path / "dist" / "app" / "app"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, text, shape, heavy = json.loads(done.stdout)
    assert text and shape[0] == 1 and not heavy
