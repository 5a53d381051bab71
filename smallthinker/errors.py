"""The project's own errors: one class per kind of fault that a user, a file or the system can cause.

A leaf: imports nothing, anyone may import it. Every message is one line that says where, what was found, what was
expected and what to do. A message may hold what a file or a client made up: `shown` for a value in it, `one_line` where
it is told.
"""

from __future__ import annotations

from copyreg import __newobj__  # type: ignore[attr-defined]
from typing import Any

MAX_MESSAGE_CHARACTERS = 900


def shown(value: object, longest: int = 80) -> str:
    """A value of a file or a user for a message: its repr, printable and bounded."""
    if isinstance(value, str | bytes | bytearray):
        value = value[: longest + 1]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; a number of over 4,300 digits
        text = f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def shown_or_nothing(value: object) -> str:
    """The same where None stands for what isn't there."""
    return "nothing" if value is None else shown(value)


def one_line(message: object, longest: int = MAX_MESSAGE_CHARACTERS) -> str:
    """A message as it may be printed, logged or sent: one line, printable, its middle left out where it is long."""
    text = str(message)
    if len(text) > 4 * longest:
        text = f"{text[: 2 * longest]}{text[-2 * longest :]}"
    return printable(" ".join(text.split()), longest)


def printable(text: str, longest: int = MAX_MESSAGE_CHARACTERS) -> str:
    """A name for a message or a table: what isn't printable written out, also line ends; cut where it is long."""
    text = text if len(text) <= 2 * longest else f"{text[:longest]}{text[-longest:]}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else f"{text[: longest * 3 // 5]} ... {text[-(longest * 2 // 5 - 5) :]}"


class SmallThinkerError(Exception):
    """Base of every error that this package raises on purpose. Can be copied and pickled, so that it gets out of a
    worker process."""

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)  # a string stands for a global
        made, args, *state = reduced
        return (__newobj__, (made, *args), *state)  # not through __init__, which may want more than `args` has


class ConfigError(SmallThinkerError, ValueError):
    """A model configuration has an unknown, missing or contradictory value; the message names the key."""


class CheckpointError(SmallThinkerError, ValueError):
    """A checkpoint (a Hugging Face folder, a torch.save file) lacks a tensor, or one has the wrong shape or type."""


class StoreFormatError(SmallThinkerError, ValueError):
    """A file is not a store, or its header, sizes, offsets or checksums contradict each other."""


class StoreReadError(SmallThinkerError, OSError):
    """Bytes of a store could not be read; the message has path and offset."""


class StoreWriteError(SmallThinkerError, OSError):
    """A store could not be written (exists already, disk full, no permission); nothing half-written stays."""


class DownloadError(SmallThinkerError, OSError):
    """A model could not be fetched from a hub: not there, not allowed, no network, or not what its checksum says."""


class MemoryBudgetError(SmallThinkerError, ValueError):
    """The memory budget is below the floor; the message names it, and `floor_bytes` is it."""

    def __init__(self, message: str, floor_bytes: int = 0) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


class ContextLengthError(SmallThinkerError, ValueError):
    """Prompt and answer don't fit the context that was planned; raised before anything is computed."""


class RequestError(SmallThinkerError, ValueError):
    """A sampling or generation parameter is out of range."""


class ModelNotFoundError(SmallThinkerError, LookupError):
    """No model has that name; the message says which there are."""


class QueueFullError(SmallThinkerError):
    """More requests are waiting than may wait; `retry_after_sec` is a guess of when there will be room."""

    def __init__(self, message: str, retry_after_sec: float) -> None:
        super().__init__(message)
        self.retry_after_sec = retry_after_sec


class ProfileError(SmallThinkerError, ValueError):
    """A storage profile can't be read, written or imposed, or has an unknown, missing or impossible value."""


class ResultsError(SmallThinkerError, ValueError):
    """A file of benchmark results can't be read or written, or a line of it contradicts the schema."""


class TokenizerError(SmallThinkerError, ValueError):
    """tokenizer.json or the chat template can't be loaded or rendered."""


class CancelledError(SmallThinkerError):
    """Work was cancelled from another thread."""


class NotPicklableError(SmallThinkerError, TypeError):
    """A model, or an answer that is being written, was to be pickled or copied."""


class ForkedError(SmallThinkerError, RuntimeError):
    """A model was used in a process that was forked from the one that loaded it: threads don't come along."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "this process was forked from the one that loaded the model, whose threads did not come along; load a "
            "model in here, or start processes with multiprocessing's 'spawn' or 'forkserver'"
        )
