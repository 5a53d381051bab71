"""The functions of _kernels that the tests use, carried out by another program (driver.cpp): on an emulated CPU, or
compiled with sanitizers. Knows how calls travel (wire.h) and nothing of what the kernels do.
"""

from __future__ import annotations

import shlex
import struct
import subprocess
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ThreadPool:
    """What a pool of the driver is made from: it makes it at first use."""

    threads: int
    isa: str


@dataclass(frozen=True)
class Section:
    """As _kernels.Section."""

    layout: str
    is_transposed: bool
    rows: int
    cols: int
    offset: int
    nbytes: int


class DriverKernels:
    """Stands in for the module _kernels. `command` starts the driver; one that ends is started again.

    Keyword arguments are not for the driver, which doesn't know names. RuntimeError when it refuses a call or dies of
    it; what it printed is in the test's standard error.
    """

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        self._driver: subprocess.Popen[bytes] | None = None
        self.ThreadPool = ThreadPool

    def record_sections(self, *arguments: Any) -> list[Section]:
        numbers = self._call("record_sections", *arguments)
        size = len(fields(Section))
        return [Section(*numbers[at : at + size]) for at in range(0, len(numbers), size)]

    def activations(self) -> list[str]:
        return list(self._call("activations"))

    def formats(self) -> dict[str, tuple[int, int]]:
        found = self._call("formats")
        return {found[at]: found[at + 1 : at + 3] for at in range(0, len(found), 3)}

    def available_isas(self) -> list[str]:
        isas = self._call("available_isas")
        return [isas] if isinstance(isas, str) else list(isas)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._call(name) if name.isupper() else partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._driver is None:
            self._driver = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._driver.stdin is not None
        try:
            self._driver.stdin.write(_text(name) + _arguments(arguments))
            self._driver.stdin.flush()
            if not self._number("<B"):
                raise RuntimeError(f"{name}: {self._text()}")
            results = [self._result() for _ in range(self._number("<I"))]
            for _ in range(self._number("<I")):
                array = arguments[self._number("<I")]
                array[...] = np.frombuffer(self._bytes(array.nbytes), array.dtype).reshape(array.shape)
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"{name}: the driver ended with status {self.stop()}") from None
        except RuntimeError:
            self.stop()
            raise
        return None if not results else results[0] if len(results) == 1 else tuple(results)

    def stop(self) -> int | None:
        """Ends the driver, if it runs, and returns its status."""
        driver, self._driver = self._driver, None
        if driver is None:
            return None
        try:
            driver.communicate()
        except BrokenPipeError:
            driver.wait()
        return driver.returncode

    def _result(self) -> Any:
        tag = self._bytes(1)
        if tag == b"i":
            return self._number("<q")
        if tag == b"s":
            return self._text()
        kind = self._bytes(1).decode()
        shape = [self._number("<q") for _ in range(self._number("<I"))]
        dtype = np.dtype(np.float32 if kind == "f" else np.uint8)
        return np.frombuffer(bytearray(self._bytes(dtype.itemsize * int(np.prod(shape)))), dtype).reshape(shape)

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _text(self) -> str:
        return self._bytes(self._number("<I")).decode()

    def _bytes(self, n: int) -> bytes:
        assert self._driver is not None and self._driver.stdout is not None
        data = self._driver.stdout.read(n)
        if len(data) < n:
            raise EOFError
        return data


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _arguments(arguments: tuple[Any, ...]) -> bytes:
    parts = [struct.pack("<I", len(arguments))]
    for i, argument in enumerate(arguments):
        if isinstance(argument, ThreadPool):
            parts.append(b"p" + struct.pack("<q", argument.threads) + _text(argument.isa))
        elif isinstance(argument, str):
            parts.append(b"s" + _text(argument))
        elif isinstance(argument, tuple):  # of names
            parts.append(b"s" + _text(",".join(argument)))
        elif isinstance(argument, float):
            parts.append(b"d" + struct.pack("<d", argument))
        elif isinstance(argument, np.ndarray):
            same = next((j for j in range(i) if arguments[j] is argument), None)
            if same is not None:
                parts.append(b"r" + struct.pack("<I", same))
                continue
            assert argument.flags.c_contiguous
            parts.append(b"a" + struct.pack("<II", argument.itemsize, argument.ndim))
            parts.append(struct.pack(f"<{argument.ndim}q", *argument.shape) + argument.tobytes())
        else:
            parts.append(b"i" + struct.pack("<q", argument))
    return b"".join(parts)
