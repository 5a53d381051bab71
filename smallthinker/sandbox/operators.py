"""The operators, outputs and methods of a template, each charged for before it is done.

A method that isn't listed isn't there, such as `center`, whose result is as long as its argument says.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sized
from string import Formatter
from sys import getsizeof
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedFormatter

from smallthinker.sandbox.meter import ITEM, LOOKUP, NODE, OPERATION, VIEWS, Meter

MAX_BITS = 256  # of whole numbers
_MAX_WIDTH = 1000
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii"),
            *("isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle"),
            *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
            *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
            *("title", "upper"),
        )
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    range: frozenset(("count", "index")),
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


def meter_of(context: Context) -> Meter:
    meter = getattr(context.environment, "meter", None)
    assert isinstance(meter, Meter)
    return meter


# What a template's text becomes when it is compiled: see `environment`.


@pass_context
def output(context: Context, value: Any) -> str:
    text = text_of(meter_of(context), value)
    meter_of(context).charge(LOOKUP + getsizeof(text))
    return text


@pass_context
def _tick(context: Context, cost: int) -> bool:
    meter_of(context).charge(max(cost, 0))  # a template could find this filter by name
    return True


@pass_context
def _key(context: Context, value: Any) -> Any:
    meter_of(context).read(value)
    return value


@pass_context
def _sliced(context: Context, value: Any) -> Any:
    return meter_of(context).made(value)


@pass_context
def _concat(context: Context, values: list[Any]) -> str:
    meter = meter_of(context)
    meter.charge(OPERATION + LOOKUP * len(values))
    texts, length = [], 0
    for value in values:
        texts.append(text_of(meter, value))
        length += len(texts[-1])
        meter.need(4 * length)
    text: str = meter.made("".join(texts))
    return text


@pass_context
def _compare(context: Context, left: Any, *rest: Any) -> Any:
    """rest: an operator's name and the value to its right, as often as the chain is long."""
    meter, result = meter_of(context), None
    for name, right in zip(rest[::2], rest[1::2], strict=True):
        meter.charge(OPERATION)
        charge_comparison(name, meter, left, right)
        result = _COMPARISONS[name](left, right)
        if not result:
            break
        left = right
    return result


def text_of(meter: Meter, value: Any) -> str:
    """As `str`, which writes up to ten characters for one of a text within a list."""
    if not isinstance(value, str):
        size = meter.read(value)
        meter.need(10 * size.bytes + ITEM * size.values)
    return str(value)


# Operators.


def check_numbers(operator: str, left: float, right: float) -> None:
    """Raises ValueError where the result would be a whole number without bounds."""
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), right.bit_length())
        if operator == "**" and right > 0:
            bits = max(left.bit_length(), 1) * right
        if bits > MAX_BITS:
            raise ValueError(f"a number of over {MAX_BITS} bits")


def need_printf(meter: Meter, text: str, values: Any) -> None:
    """Each `%` may have the largest number of the text, or of the values, as its width, and write all the values."""
    size = meter.read(values)
    widths = [int(digits[:20]) for digits in re.findall(r"\d+", text)]
    if "*" in text:
        widths += [abs(value) for value in (values if isinstance(values, tuple) else ()) if isinstance(value, int)]
    each = max(widths, default=0) + 12 * size.bytes + ITEM * size.values
    meter.need(4 * (len(text) + text.count("%") * each))
    meter.charge(OPERATION * text.count("%"))


class Format(Formatter):
    """`text.format`, within bounds."""

    def __init__(self, environment: Any, text: str) -> None:
        self._sandboxed, self._meter, self._template = SandboxedFormatter(environment), environment.meter, text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        text: str = self._meter.made(self.vformat(self._template, args, kwargs))
        return text

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        self._meter.charge(OPERATION)
        return self._sandboxed.get_field(field_name, args, kwargs)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        text = (
            value if conversion is None else text_of(self._meter, [value]) and super().convert_field(value, conversion)
        )
        return text

    def format_field(self, value: Any, format_spec: str) -> Any:
        if any(len(digits) > 4 or int(digits) > _MAX_WIDTH for digits in re.findall(r"\d+", format_spec)):
            raise ValueError(f"a width of over {_MAX_WIDTH}")
        text = format(value if isinstance(value, (int, float)) else text_of(self._meter, value), format_spec)
        return self._meter.made(text)


def charge_comparison(name: str, meter: Meter, left: Any, right: Any) -> None:
    containers: Any = (list, tuple, dict, range, *VIEWS)
    if name in ("in", "notin"):
        if isinstance(right, str):
            charge_search(meter, right, left)
        elif isinstance(right, (dict, VIEWS[0])):
            meter.read(left)  # its hash
        else:
            meter.read(left, right)
    elif isinstance(left, str) and isinstance(right, str):
        meter.charge(min(len(left), len(right)) >> 2)
    elif (
        isinstance(left, containers)
        and isinstance(right, containers)
        and (name not in ("eq", "ne") or len(left) == len(right))
    ):
        meter.read(left, right)


def charge_search(meter: Meter, text: str, *wanted: Any) -> None:
    """Searching backwards, and stripping, compare every place with every character in the worst case."""
    meter.charge(len(text) * (4 + sum(len(one) for one in wanted if isinstance(one, Sized))) >> 4)


# Methods.


def check_method(meter: Meter, owner: Any, name: str, args: list[Any]) -> None:
    """Before a method of a text, list, tuple or dict. Raises SecurityError for one that isn't listed."""
    if name not in _METHODS.get(type(owner), ()):
        raise SecurityError(f"{type(owner).__name__}.{name} can't be used in a template")
    size = meter.read(*args)
    if type(owner) is not str:
        if name in ("count", "index"):
            meter.read(owner)
        elif name == "copy":
            meter.need(ITEM * len(owner))
        return
    meter.charge(len(owner) >> 2)
    texts = [one for one in args if isinstance(one, str)]
    numbers = [one for one in args if isinstance(one, int)]
    if name == "join":
        pieces = len(args[0]) if args and isinstance(args[0], Sized) else 0
        meter.charge(NODE * pieces)
        meter.need(4 * (size.bytes + len(owner) * pieces))
    elif name == "replace":
        need_replace(meter, owner, *texts[:2])
    elif name in ("split", "rsplit", "splitlines"):
        charge_search(meter, owner, *texts)
        pieces = owner.count(texts[0]) + 1 if texts and texts[0] else len(owner) // 2 + 1
        if numbers and numbers[0] >= 0 and name != "splitlines":
            pieces = min(pieces, numbers[0] + 1)
        meter.need(getsizeof(owner) + ITEM * pieces)
        meter.charge(getsizeof(owner))
    elif name in ("partition", "rpartition"):
        charge_search(meter, owner, *texts)
        meter.charge(getsizeof(owner))
    else:
        charge_search(meter, owner, *texts)
        meter.need(6 * getsizeof(owner))


def need_replace(meter: Meter, text: str, old: str = "", new: str = "") -> None:
    charge_search(meter, text, old)
    meter.need(4 * (len(text) + (text.count(old) if old else len(text) + 1) * len(new)))


OPERATORS = {"<turn>": _tick, "<key>": _key, "~": _concat, "<compare>": _compare, "[:]": _sliced}
"""As filters, by names that can't be written as such in a template: see `environment`."""
