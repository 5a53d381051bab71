"""Commands in processes of their own that end badly: at a moment by SIGALRM, whose default kills as SIGKILL does, with
nothing cleaned up; or that have less of the system than they want."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

PRELOADED = ["smallthinker.cli", "smallthinker.llm", "smallthinker.evaluation", "smallthinker.expert_store.convert"]
KILLED = -signal.SIGALRM


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float


def run(
    words: str,
    cwd: Path,
    *,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    killed_after_sec: float = 0,
    limits: Mapping[int, int] | None = None,
) -> Ended:
    """`smallthinker WORDS` in that folder. limits: of `resource`, by their numbers there. What it says goes through
    pipes, which have no size that could be limited."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "0").write_text(stdin)
        for stream in "12":
            os.mkfifo(folder / stream)
        arguments = words.split(), folder, cwd, dict(env or {}), killed_after_sec, dict(limits or {})
        process = context.Process(target=_run, args=arguments)
        process.start()
        with ThreadPoolExecutor(2) as readers:
            out, err = readers.map(Path.read_text, [folder / "1", folder / "2"])
        process.join()
        assert process.exitcode is not None
        seconds = (folder / "3").read_text() if (folder / "3").exists() else ""
        return Ended(process.exitcode, out, err, float(seconds or 0))


def _run(
    words: list[str], folder: Path, cwd: Path, env: dict[str, str], killed_after_sec: float, limits: dict[int, int]
) -> None:
    for stream in range(3):
        opened = os.open(folder / str(stream), os.O_WRONLY if stream else os.O_RDONLY)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = ["smallthinker", *words]
    main = import_module("smallthinker.cli").main
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it; a preloaded process as well
    for number, value in limits.items():
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, killed_after_sec)
    code = main()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not limits:
        (folder / "3").write_text(str(time.perf_counter() - began))
    raise SystemExit(code)


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
