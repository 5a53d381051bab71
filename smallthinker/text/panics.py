"""What the tokenizers library's native part raises where it meets what it never expected: an error like any other.

Its panics are BaseExceptions, so that they would end a thread or a program past everything that takes errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises ValueError in place of a panic."""
    try:
        yield
    except BaseException as e:
        if type(e).__name__ != "PanicException":  # no module has it by a name
            raise
        raise ValueError(str(e)) from None
