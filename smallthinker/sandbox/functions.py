"""The filters, tests and functions that a template may use, each charged for before it is done.

What isn't listed isn't there: filters that pad, wrap or repeat by a number. Each check states the most that its
function can take, as jinja2 and Python do it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sized
from functools import partial
from sys import getsizeof
from typing import Any

from jinja2 import filters, pass_context, tests
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg
from markupsafe import escape

from smallthinker.sandbox.meter import ITEM, NODE, OPERATION, Meter
from smallthinker.sandbox.operators import charge_comparison, charge_search, meter_of, need_replace, text_of

_MAX_DIGITS, _MAX_WIDTH = 400, 1000
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


# Filters and tests. First those of jinja2, by what they do to their arguments.


def _cheap(meter: Meter, *args: Any, **kwargs: Any) -> None:
    """Look at no more than one item."""


def _items(meter: Meter, value: Any = None, *args: Any, **kwargs: Any) -> None:
    """Pass by every item, once."""
    count = len(value) if isinstance(value, Sized) else 0
    meter.need(ITEM * count)
    meter.charge(NODE * count)


def _everything(meter: Meter, *args: Any, **kwargs: Any) -> None:
    """Read everything, and make texts of it that are at most six times as long."""
    size = meter.read(*args, *kwargs.values())
    meter.need(6 * size.bytes + ITEM * size.values)


def _sorted(meter: Meter, value: Any = None, *args: Any, **kwargs: Any) -> None:
    """Compare items, which may be characters, about twenty times each."""
    before = meter.left
    _everything(meter, value, *args, **kwargs)
    _items(meter, value)
    meter.charge(20 * (before - meter.left))


def _pieces(meter: Meter, value: Any = None, *args: Any, **kwargs: Any) -> None:
    """Handle every character or word by itself, in Python."""
    size = meter.read(value)
    meter.charge(16 * size.bytes)
    meter.need(ITEM * size.bytes)


def _joined(meter: Meter, value: Any = None, d: Any = "", attribute: Any = None) -> None:
    size, count = meter.read(value), len(value) if isinstance(value, Sized) else 0
    meter.charge(NODE * count)
    meter.need(10 * size.bytes + ITEM * size.values + 4 * count * len(text_of(meter, d)))


def _replaced(meter: Meter, s: Any, old: Any, new: Any, count: Any = None) -> None:
    need_replace(meter, text_of(meter, s), text_of(meter, old), text_of(meter, new))


def _indented(meter: Meter, s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    text = text_of(meter, s)
    if not isinstance(width, (int, str)) or (isinstance(width, int) and width > _MAX_WIDTH):
        raise ValueError(f"indent: expected a text, or at most {_MAX_WIDTH}")
    lines = 2 + sum(map(text.count, _LINE_ENDS))
    meter.charge(4 * len(text) + OPERATION * lines)
    meter.need(6 * getsizeof(text) + lines * (ITEM + 4 * (len(width) if isinstance(width, str) else max(width, 0))))


def _trimmed(meter: Meter, value: Any, chars: Any = None) -> None:
    text = text_of(meter, value)
    charge_search(meter, text, chars)
    meter.need(getsizeof(text))


def _number(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(value)} characters")
    meter.read(value)


def _rounded(meter: Meter, value: Any, precision: Any = 0, method: Any = "common") -> None:
    _numbers(meter, value, precision)
    if abs(precision) > 30:
        raise ValueError("round: expected a precision within 30 digits")


def _numbers(meter: Meter, *args: Any, **kwargs: Any) -> None:
    """Which are texts with `%` otherwise, or with `*`."""
    if not all(isinstance(arg, (int, float)) for arg in (*args, *kwargs.values())):
        raise TypeError("expected numbers")


def _guarded(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """The filter or test, checked first. Takes the context, so that jinja2 doesn't compute it while it compiles."""
    kind = _PassArg.from_obj(function)

    @pass_context
    def guarded(context: Context, *args: Any, **kwargs: Any) -> Any:
        meter = meter_of(context)
        meter.charge(OPERATION)
        check(meter, *args, **kwargs)
        if kind is not None:
            wanted = {_PassArg.context: context, _PassArg.eval_context: context.eval_ctx}
            args = (wanted.get(kind, context.environment), *args)
        result = function(*args, **kwargs)
        if not isinstance(result, Iterator):
            return meter.made(result, ITEM)
        items = []
        for item in result:  # now: nobody would be charged for what it does later
            meter.charge(ITEM)
            items.append(item)
        return items

    return guarded


def _escape(value: Any) -> str:
    """A text like any other: Markup has operators and methods of its own."""
    return str(escape(value))


@pass_context
def _safe(context: Context, value: Any) -> str:
    """Means nothing where nothing is escaped."""
    return text_of(meter_of(context), value)


@pass_context
def _printf(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
    environment: Any = context.environment
    return environment.call_binop(context, "%", text_of(environment.meter, value), kwargs or args)


@pass_context
def _sum(context: Context, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    environment: Any = context.environment
    get = None if attribute is None else filters.make_attrgetter(environment, attribute)
    for value in values:
        start = environment.call_binop(context, "+", start, value if get is None else get(value))
    return start


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: jinja2's own would escape HTML."""
    meter = meter_of(context)
    size = meter.read(value, indent, separators)
    spaces = 0 if indent is None else len(indent) if isinstance(indent, str) else max(int(indent), 0)
    between = sum(map(len, separators)) if separators else 4
    meter.charge(OPERATION + (10 * size.bytes if sort_keys else 0) + (0 if indent is None else OPERATION * size.values))
    meter.need(6 * size.bytes + size.values * (ITEM + 4 * (between + size.levels * spaces)))
    return str(
        meter.made(
            json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        )
    )


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    values = dict(*args, **kwargs)
    if any(not isinstance(name, str) or name.startswith("_") for name in values):
        raise SecurityError("a namespace has no names that begin with _")
    return Namespace(values)


def _each(check: Callable[..., None], names: str, known: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    return {name: _guarded(known[name], check) for name in names.split()}


GLOBALS: dict[str, Any] = {"dict": _dict, "namespace": _namespace, "cycler": Cycler, "joiner": Joiner}
FILTERS: dict[str, Any] = {
    **_each(_cheap, "attr count d default first last length", filters.FILTERS),
    **_each(_items, "items list map reject rejectattr reverse select selectattr", filters.FILTERS),
    **_each(_everything, "abs capitalize lower string truncate upper", filters.FILTERS),
    **_each(_everything, "e escape", {"e": _escape, "escape": _escape}),
    **_each(_sorted, "dictsort groupby max min sort unique", filters.FILTERS),
    **_each(_pieces, "title urlencode wordcount", filters.FILTERS),
    **_each(_number, "float int", filters.FILTERS),
    **_each(_joined, "join", filters.FILTERS),
    **_each(_replaced, "replace", filters.FILTERS),
    **_each(_indented, "indent", filters.FILTERS),
    **_each(_trimmed, "trim", filters.FILTERS),
    **_each(_rounded, "round", filters.FILTERS),
    **{"sum": _sum, "format": _printf, "safe": _safe, "tojson": _tojson},
}
TESTS: dict[str, Any] = {
    **_each(
        _cheap,
        "boolean callable defined false filter float integer iterable mapping none number sameas sequence string test "
        "true undefined",
        tests.TESTS,
    ),
    **_each(_numbers, "divisibleby even odd", tests.TESTS),
    **_each(_everything, "lower upper", tests.TESTS),
    **_each(partial(charge_comparison, "in"), "in", tests.TESTS),
    **_each(partial(charge_comparison, "eq"), "eq equalto == ne !=", tests.TESTS),
    **_each(partial(charge_comparison, "lt"), "ge >= gt greaterthan > le <= lt lessthan <", tests.TESTS),
}
