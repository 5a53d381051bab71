"""Work in a forked process: what it said, or that it failed."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

HANGS_SEC = 300  # nobody would look for a child that waits for ever


def in_child(work: Callable[[], object]) -> str:
    """`repr` of what `work` returned in a process that was forked from this one. Raises AssertionError with its
    traceback where it raised, and where it never came back."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said, status = "", 1
        try:
            signal.alarm(HANGS_SEC)
            said, status = repr(work()), 0
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(writing, said.encode()[:60000])
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"status {status}: {text}"
    return text
