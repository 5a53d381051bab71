"""Runs sparse Mixture-of-Experts language models that are larger than memory, with their experts on disk.

>>> from smallthinker import LLM
>>> with LLM(memory="1GiB") as llm:
...     print(llm.generate("Once upon a time").text)
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HERE = Path(__file__).resolve().parent
if not (_HERE / "router").is_dir() and not hasattr(sys, "frozen"):  # a bundle has no folders of modules
    # Found through the checkout's root on sys.path (`python -m smallthinker` there), where this folder is only one of
    # the package's four and nothing is compiled: everything else comes from the installed package.
    _elsewhere = [p for p in sys.path if Path(p or ".").resolve() != _HERE.parent]
    _spec = PathFinder.find_spec(__name__, _elsewhere)
    if _spec is None or not _spec.submodule_search_locations:
        raise ImportError(f"{_HERE} is a source folder: install the project first (pip install .)")
    __path__ = list(_spec.submodule_search_locations)

if TYPE_CHECKING:
    __version__: str
    from smallthinker.async_llm import AsyncLLM, AsyncTextStream
    from smallthinker.errors import QueueFullError, SmallThinkerError
    from smallthinker.generation.answer import Call, Completion, Finished, GenerationParams, Token, TokenLogprobs
    from smallthinker.generation.request import Request
    from smallthinker.generation.scheduler import Scheduler
    from smallthinker.generation.stats import SchedulerStats
    from smallthinker.llm import LLM, TextStream
    from smallthinker.options import EngineOptions
    from smallthinker.text.message_types import Message, TextPart, Tool, ToolCall

_EXPORTS = {
    "LLM": "smallthinker.llm",
    "AsyncLLM": "smallthinker.async_llm",
    "AsyncTextStream": "smallthinker.async_llm",
    "Call": "smallthinker.generation.answer",
    "Completion": "smallthinker.generation.answer",
    "EngineOptions": "smallthinker.options",
    "Finished": "smallthinker.generation.answer",
    "GenerationParams": "smallthinker.generation.answer",
    "Message": "smallthinker.text.message_types",
    "QueueFullError": "smallthinker.errors",
    "Request": "smallthinker.generation.request",
    "Scheduler": "smallthinker.generation.scheduler",
    "SchedulerStats": "smallthinker.generation.stats",
    "SmallThinkerError": "smallthinker.errors",
    "TextPart": "smallthinker.text.message_types",
    "TextStream": "smallthinker.llm",
    "Token": "smallthinker.generation.answer",
    "TokenLogprobs": "smallthinker.generation.answer",
    "Tool": "smallthinker.text.message_types",
    "ToolCall": "smallthinker.text.message_types",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncTextStream",
    "Call",
    "Completion",
    "EngineOptions",
    "Finished",
    "GenerationParams",
    "Message",
    "QueueFullError",
    "Request",
    "Scheduler",
    "SchedulerStats",
    "SmallThinkerError",
    "TextPart",
    "TextStream",
    "Token",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Exports are imported when first used: `import smallthinker` costs nothing until a model is needed."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
