"""The pickle of a torch checkpoint as plain records, with nothing in it run.

A pickle is a program for a small stack machine that may call anything it can name. Here a name stays a name, calls make
records, and names and opcodes beyond those of a dict of tensors are refused. Python's own Unpickler is not used at all.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, NamedTuple

_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
STORAGE_DTYPES = {"torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16"}
_KNOWN = {_DICT, _TENSOR, _PARAMETER, *STORAGE_DTYPES}

_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SMALL_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class RefusedError(Exception):
    """What was found that must not be there, as half a sentence."""


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, "module name". Never looked up."""

    text: str


class PickledTensor(NamedTuple):
    storage: Any
    offset: Any
    shape: Any
    stride: Any


def build(pickle: bytes) -> Any:
    """What the opcodes put together: dicts, tuples, texts, numbers, and Name and PickledTensor for the rest.

    Raises RefusedError; ValueError, LookupError or TypeError for bytes that make no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name if name in _ARGUMENT:
                stack.append(argument)
            case name if name in _CONSTANT:
                stack.append(_CONSTANT[name])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case name if name in _SMALL_TUPLE:
                items = tuple(stack.pop() for _ in range(_SMALL_TUPLE[name]))
                stack.append(items[::-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module} {name}"))
            case "BINPERSID":  # a storage: torch gives (the word, its class, its key, its device, its number of items)
                stack[-1] = tuple(stack[-1])
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_record(function, arguments))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items_list = since_mark()
                _set(stack[-1], items_list)
            case "BUILD":
                stack.pop()  # attributes of an OrderedDict: versions of modules
            case other:
                raise RefusedError(
                    f"a pickle with {other}, which a dict of tensors doesn't need; nothing of it was run"
                )
    raise RefusedError("a pickle without an end; copy or download it again")


def _name(text: str) -> Name:
    if text not in _KNOWN:
        named = text.replace(" ", ".")[:80]
        raise RefusedError(
            f"a pickle that names {named!r}, which a dict of tensors doesn't need; nothing of it was run"
        )
    return Name(text)


def _record(function: Any, arguments: Any) -> Any:
    if isinstance(function, Name) and isinstance(arguments, tuple):
        if function.text == _DICT and arguments == ():
            return {}
        if function.text == _TENSOR and len(arguments) >= 4:
            return PickledTensor(*arguments[:4])
        if function.text == _PARAMETER and arguments:
            return arguments[0]
    raise RefusedError("a pickle with a call that a dict of tensors doesn't need; nothing of it was run")


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise RefusedError("a pickle whose dict has other keys than texts")
    target.update(zip(items[::2], items[1::2], strict=True))
