"""Where a token's time goes: in which kernel, waiting for the disk, or in Python between them.

The kernels count their own calls and seconds, always; two readings of the engine's clocks and their difference are all
that a profile is. Knows nothing about what runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class KernelTime(NamedTuple):
    calls: int
    sec: float


def kernel_times(*readings: Mapping[str, tuple[int, float]]) -> dict[str, KernelTime]:
    """The sums of several readings of kernels' calls and seconds; a name may be in more than one."""
    times: dict[str, KernelTime] = {}
    for reading in readings:
        for name, (calls, sec) in reading.items():
            before = times.get(name, KernelTime(0, 0.0))
            times[name] = KernelTime(before.calls + calls, before.sec + sec)
    return times


@dataclass(frozen=True)
class Clocks:
    """What an engine did since it was made, or between two readings; seconds of wall time.

    wall_sec: inside prefill and decode steps. stall_sec: of that, with nothing to compute until a read came back.
    kernels: of that, by kernel, with the GIL released. Kernels that take no thread pool are counted for the whole
    process: a second model that computes at the same time is in them.
    """

    tokens: int = 0
    wall_sec: float = 0.0
    stall_sec: float = 0.0
    kernels: Mapping[str, KernelTime] = field(default_factory=dict)

    def __sub__(self, earlier: Clocks) -> Clocks:
        before = earlier.kernels
        kernels = {
            name: KernelTime(calls - before.get(name, (0, 0.0))[0], sec - before.get(name, (0, 0.0))[1])
            for name, (calls, sec) in self.kernels.items()
        }
        return Clocks(
            self.tokens - earlier.tokens,
            self.wall_sec - earlier.wall_sec,
            self.stall_sec - earlier.stall_sec,
            {name: kernel for name, kernel in kernels.items() if kernel.calls},
        )

    @property
    def arithmetic_sec(self) -> float:
        """Wall time in kernels, however many threads they had."""
        return sum(kernel.sec for kernel in self.kernels.values())

    @property
    def python_sec(self) -> float:
        """The rest: the interpreter, numpy, and handing reads to the queue."""
        return self.wall_sec - self.stall_sec - self.arithmetic_sec

    def parts(self) -> dict[str, float]:
        """Seconds by part, kernels first, the longest first; they add up to `wall_sec`."""
        kernels = sorted(self.kernels.items(), key=lambda item: -item[1].sec)
        return {name: kernel.sec for name, kernel in kernels} | {
            "waiting for the disk": self.stall_sec,
            "Python": self.python_sec,
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "wall_sec": self.wall_sec,
            "stall_sec": self.stall_sec,
            "python_sec": self.python_sec,
            "kernels": {name: kernel._asdict() for name, kernel in self.kernels.items()},
        }


@dataclass(frozen=True)
class Profile:
    """One answer. Sampling and turning tokens into text are beside the steps, and so beside their wall time."""

    prefill: Clocks
    decode: Clocks
    sampling_sec: float
    text_sec: float
    new_tokens: int

    def table(self) -> str:
        """For people: milliseconds a token and shares, prefill beside decode."""
        prefill, decode = self.prefill.parts(), self.decode.parts()
        names = list(dict.fromkeys([*decode, *prefill]))
        names.sort(key=lambda name: name in ("waiting for the disk", "Python"))  # a prefill's own kernel comes before
        lines = [f"{'ms a token':<22}{_title('prefill', self.prefill)}{_title('decode', self.decode)}"]
        for name in names:
            lines.append(f"  {name:<20}{_cell(prefill, name, self.prefill)}{_cell(decode, name, self.decode)}")
        whole = {"all": self.prefill.wall_sec}, {"all": self.decode.wall_sec}
        lines.append(f"  {'all':<20}{_cell(whole[0], 'all', self.prefill)}{_cell(whole[1], 'all', self.decode)}")
        sampling, text = (1000 * sec / max(1, self.new_tokens) for sec in (self.sampling_sec, self.text_sec))
        lines.append(f"  beside the steps: sampling {sampling:.3f}, text {text:.3f}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For `--stats json`; seconds."""
        return {
            "prefill": self.prefill.to_dict(),
            "decode": self.decode.to_dict(),
            "sampling_sec": self.sampling_sec,
            "text_sec": self.text_sec,
        }


def _title(name: str, clocks: Clocks) -> str:
    return f"{f'{name} ({clocks.tokens} tokens)':>24}"


def _cell(parts: Mapping[str, float], name: str, clocks: Clocks) -> str:
    if name not in parts or not clocks.tokens or not clocks.wall_sec:
        return f"{'-':>24}"
    return f"{1000 * parts[name] / clocks.tokens:>18.3f}{parts[name] / clocks.wall_sec:>6.0%}"


class Stopwatch:
    """Adds up the seconds spent inside its `with` blocks."""

    def __init__(self) -> None:
        self.sec = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.sec += time.perf_counter() - self._began
