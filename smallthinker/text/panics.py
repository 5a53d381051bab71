"""What the tokenizers library raises where a tokenizer.json is broken in a way that loading it didn't show.

Its errors are bare Exceptions, and its native part's panics BaseExceptions, which would end a thread or a program past
everything that takes errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smallthinker.errors import TokenizerError, one_line

_SHOWN = 200  # characters of what the library says


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises ValueError in place of a panic."""
    try:
        yield
    except BaseException as e:
        if not _is_panic(e):
            raise
        raise ValueError(str(e)) from None


@contextmanager
def tokenizer_faults(doing: str) -> Iterator[None]:
    """Raises TokenizerError in place of either; also a decorator."""
    try:
        yield
    except BaseException as e:
        if type(e) is not Exception and not _is_panic(e):
            raise
        raise TokenizerError(
            f"tokenizer.json: cannot {doing}: {one_line(str(e), _SHOWN)}; it is broken, or not as the library "
            "wants it: convert the model again"
        ) from None


def _is_panic(e: BaseException) -> bool:
    return type(e).__name__ == "PanicException"  # no module has it by a name
