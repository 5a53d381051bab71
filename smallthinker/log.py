"""The project's one logger, `smallthinker`, for programs that listen to it: nothing is imported or written otherwise.

Says when a model has been loaded, from what and into how much memory, and when it was closed; warns of what an
application can't see in an answer. Never a prompt or an answer.
"""

from __future__ import annotations

import sys
from typing import Literal

NAME = "smallthinker"


def log(level: Literal["debug", "info", "warning", "error"], message: str, *values: object) -> None:
    """A program that listens has imported `logging` (5 ms, which others needn't wait)."""
    logging = sys.modules.get("logging")
    if logging is not None:
        getattr(logging.getLogger(NAME), level)(message, *values)
