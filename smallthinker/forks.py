"""Whether this is the process in which something was made, or one that was forked from it.

A forked process has the memory of the one before it and none of its threads: to wait for those is to wait for ever, and
a lock that one of them held stays locked. The native parts do the same for themselves (kernels/forks.h).
"""

from __future__ import annotations

import os
from typing import NoReturn

from smallthinker.errors import ForkedError, NotPicklableError


class Home:
    """The process that made this."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raises ForkedError in a process that was forked from it."""
        if not self.is_here:
            raise ForkedError


class StaysHere:
    """What is threads, files and memory of this process: neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(
            f"{type(self).__name__}: can't be pickled or copied: it is threads, files and memory of this process; hand "
            "its model's path and EngineOptions to the other one, and load it there"
        )
