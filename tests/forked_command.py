"""Commands in processes of their own, forked from one that has imported them: tests start hundreds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

PRELOADED = ["smallthinker.cli", "smallthinker.llm", "smallthinker.server.app", "smallthinker.evaluation", "llm.cli"]


def smallthinker(
    *args: str | Path, stdin: str = "", cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return run_module("smallthinker", *args, stdin=stdin, cwd=cwd, env=env)


def run_module(
    module: str, *args: str | Path, stdin: str = "", cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m smallthinker` or `llm`, and what `subprocess.run` would give. What imports look up in the environment
    is as it is here."""
    words, env = [str(arg) for arg in args], dict(os.environ if env is None else env)
    if sys.platform == "win32":
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "0").write_text(stdin)
        process = context.Process(target=_run, args=(module, words, folder, cwd or Path.cwd(), env))
        process.start()
        process.join()
        assert process.exitcode is not None
        said = [(folder / stream).read_text() for stream in "12"]
        return subprocess.CompletedProcess(words, process.exitcode, *said)


def _run(module: str, words: list[str], folder: Path, cwd: Path, env: dict[str, str]) -> None:
    for stream in range(3):
        os.dup2(os.open(folder / str(stream), os.O_RDWR | os.O_CREAT), stream)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put /dev/null in its place
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *words]
    cli = import_module(f"{module}.cli")
    raise SystemExit(cli.cli() if module == "llm" else cli.main())
