"""What one rendering of a template may still take: bytes made, and work, in one count.

The same template and values always cost the same, on any machine. Knows nothing of jinja2 but its namespaces.
"""

from __future__ import annotations

from itertools import chain
from sys import getsizeof
from typing import Any, NamedTuple

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

BUDGET = 64 << 20
"""Of one rendering: bytes made, and about 20 ns of work a unit. A long conversation takes a few percent of it."""
OPERATION, LOOKUP, NODE, ITEM = 250, 60, 20, 100
"""Units of a guarded call, a lookup, a value or a syntax node passed by, an item of a new list."""
_MAX_LEVELS = 100
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


class TooCostlyError(TemplateRuntimeError):
    """The template has used up what a rendering may take."""


class Size(NamedTuple):
    bytes: int
    values: int
    levels: int


class Meter:
    """What one rendering may still take."""

    def __init__(self) -> None:
        self.left = BUDGET

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooCostlyError("it takes too much time or memory; nothing but a mistake or an attack does")

    def need(self, units: int) -> None:
        """Before something is made whose size is only known afterwards: there must be as much left."""
        if units > self.left:
            self.charge(units)

    def made(self, value: Any, item_bytes: int = 8) -> Any:
        """Charge for a new value, not for what its items refer to."""
        if isinstance(value, str):
            self.charge(getsizeof(value))
        elif isinstance(value, (list, tuple, dict)):
            self.charge(64 + item_bytes * len(value))
        return value

    def read(self, *values: Any) -> Size:
        """Charge for a walk over all that is in the values. One that is in several places counts as often: two lists
        of the same two, forty levels deep, are a text of 10**12 characters."""
        size, count, levels = 0, 0, 0
        level: list[Any] = list(values)
        while level:
            levels += 1
            if levels > _MAX_LEVELS:
                raise TooCostlyError(f"a value is nested over {_MAX_LEVELS} levels deep")
            count += len(level)
            self.charge(NODE * len(level))
            below: list[Any] = []
            for value in level:
                if isinstance(value, str):
                    size += getsizeof(value)
                elif isinstance(value, Namespace):
                    below.extend(object.__getattribute__(value, "_Namespace__attrs").values())
                elif isinstance(value, range):
                    count += len(value)
                    self.charge(NODE * len(value))
                elif isinstance(value, dict):
                    self.need(2 * NODE * len(value))
                    below.extend(chain(value.keys(), value.values()))
                elif isinstance(value, (list, tuple)) or type(value) in VIEWS:
                    self.need(NODE * len(value))
                    below.extend(value)
            level = below
        self.charge(size >> 2)
        return Size(size, count, levels)
