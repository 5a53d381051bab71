"""What changed between two results files, beyond the noise of their own runs.

A change counts where both of two things hold. The 95 % bootstrap interval of the ratio of medians leaves out 1; of
three runs that alone would be wrong in one of four cases. And the change exceeds 2 % and twice the standard error of
that ratio, from the spread of all runs around their cell's median, pooled over both files: three runs that happen to
agree say little about noise, all cells together say more. Together they are wrong in about one of forty.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from smallthinker.benchmark.matrix import Cell, Start
from smallthinker.benchmark.results import Results
from smallthinker.benchmark.summary import CellSummary, Spread, summarise
from smallthinker.benchmark.views.table import disk_name
from smallthinker.errors import printable
from smallthinker.figures import rounded, size_text

Verdict = Literal["faster", "slower", "within noise", "too few runs"]
LEAST_RUNS = 3
_LEAST_CHANGE = 0.02
_WORTH_SEEING = 0.05  # a change that people ask about: how many runs would show it is said
_RESAMPLES = 4000
_MEDIAN = math.sqrt(math.pi / 2)  # how much less a median knows than a mean
METRICS: Final[dict[str, tuple[str, Callable[[CellSummary], Spread]]]] = {
    "decode_tok_per_sec": ("decode, tokens/s", lambda s: s.decode),
    "ttft_sec": ("TTFT, s", lambda s: s.ttft),  # and with it the prompt's speed, which is its inverse
}


class CellChange(NamedTuple):
    """One figure of one cell in both files. ratio: B's median over A's; low, high: its 95 % interval."""

    cell: Cell
    start: Start
    metric: str
    a: Spread
    b: Spread
    ratio: float
    low: float
    high: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        plain = {key: value for key, value in self._asdict().items() if key not in ("cell", "a", "b")}
        return self.cell._asdict() | plain | {"a": self.a.to_dict(), "b": self.b.to_dict()}


class BenchComparison(NamedTuple):
    """Cells that both files have; `only_a` and `only_b` count the others. `warnings`: why A and B may not be alike.
    `name_a`, `name_b`: the model and the machine of each."""

    name_a: str
    name_b: str
    changes: list[CellChange]
    warnings: list[str]
    noise: dict[str, float]
    only_a: int
    only_b: int

    def to_dict(self) -> dict[str, Any]:
        return self._asdict() | {"changes": [change.to_dict() for change in self.changes]}


def compare(a: Results, b: Results) -> BenchComparison:
    """Every cell and start that both have, in A's order."""
    ours, theirs = ({(s.cell, s.start): s for s in summarise(results)} for results in (a, b))
    both = [(summary, theirs[key]) for key, summary in ours.items() if key in theirs]
    noise = {
        metric: pooled_noise([spread(s) for s in [*ours.values(), *theirs.values()]])
        for metric, (_, spread) in METRICS.items()
    }
    changes = [
        _change(x, y, metric, spread(x), spread(y), noise[metric])
        for x, y in both
        for metric, (_, spread) in METRICS.items()
    ]
    names = _name(a), _name(b)
    return BenchComparison(*names, changes, _warnings(a, b), noise, len(ours) - len(both), len(theirs) - len(both))


def pooled_noise(spreads: Sequence[Spread]) -> float:
    """The relative standard deviation of a run, from all runs' distances to their own cell's median; 0 with one run
    each. Runs that are their cell's median say nothing; the square root gives back what the median takes."""
    distances: list[float] = []
    for spread in spreads:
        runs = len(spread.values)
        found = [abs(value / spread.median - 1) * math.sqrt(runs / max(1, runs - 1)) for value in spread.values]
        distances += found if runs % 2 == 0 else sorted(found)[1:]
    return 1.4826 * statistics.median(distances) if distances else 0.0


def ratio_interval(a: Spread, b: Spread, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians, B over A."""
    rng = np.random.default_rng(seed)
    medians = [
        np.median(rng.choice(np.array(spread.values), (_RESAMPLES, len(spread.values))), axis=1) for spread in (a, b)
    ]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(low), float(high)


def judge(a: Spread, b: Spread, noise: float, lower_is_better: bool) -> tuple[float, float, float, Verdict]:
    """-> ratio of medians, its interval, and what that means."""
    ratio = b.median / a.median
    low, high = ratio_interval(a, b)
    if min(len(a.values), len(b.values)) < LEAST_RUNS:
        return ratio, low, high, "too few runs"
    if low <= 1 <= high or abs(ratio - 1) <= _seen_change(noise, len(a.values), len(b.values)):
        return ratio, low, high, "within noise"
    return ratio, low, high, "faster" if (ratio > 1) != lower_is_better else "slower"


def _change(x: CellSummary, y: CellSummary, metric: str, a: Spread, b: Spread, noise: float) -> CellChange:
    return CellChange(x.cell, x.start, metric, a, b, *judge(a, b, noise, metric == "ttft_sec"))


def _name(results: Results) -> str:
    machine, model = results.environment["machine"], results.environment["model"]
    commit = machine["commit"] or results.environment["versions"]["smallthinker"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {size_text(machine['memory_bytes'])}"
    return printable(f"{model['name']}, {model['quant']}, on {where}; {commit}, {results.environment['measured'][:10]}")


def _seen_change(noise: float, runs_a: int, runs_b: int) -> float:
    """The least change that so many runs of each would show."""
    return max(_LEAST_CHANGE, 2 * _MEDIAN * noise * math.sqrt(1 / runs_a + 1 / runs_b))


def _runs_for(change: float, noise: float) -> int:
    """Of each, to see such a change."""
    return max(LEAST_RUNS, math.ceil(2 * (2 * _MEDIAN * noise / change) ** 2))


def _warnings(a: Results, b: Results) -> list[str]:
    found = []
    for part in ("machine", "disk", "model", "versions", "settings"):
        x, y = a.environment[part], b.environment[part]
        keys = [key for key in dict.fromkeys([*x, *y]) if x.get(key) != y.get(key)]
        if part in ("machine", "versions"):
            keys = [key for key in keys if key not in ("commit", "smallthinker")]  # what one compares, as a rule
        found += [f"{part} differs: {key} is {x.get(key)!r} in A, {y.get(key)!r} in B" for key in keys]
    shared = a.environment["profiles"].keys() & b.environment["profiles"].keys()
    for name in sorted(shared):
        if a.environment["profiles"][name] != b.environment["profiles"][name]:
            found.append(f"profile differs: {name} has other figures in B")
    return found


def comparison_text(found: BenchComparison) -> str:
    """For people: one line for each figure, changes first."""
    place = f"{'disk':<12}{'prompt':>7}{'budget':>11}  {'start':<6}"
    lines = [
        f"A: {found.name_a}",
        f"B: {found.name_b}",
        f"{place}{'figure':<18}{'A':>10}{'B':>10}{'B / A':>8}  verdict",
    ]
    for c in sorted(found.changes, key=lambda c: c.verdict in ("within noise", "too few runs")):
        interval = f"{c.verdict} ({c.low:.2f} to {c.high:.2f})"
        figures = f"{METRICS[c.metric][0]:<18}{rounded(c.a.median):>10}{rounded(c.b.median):>10}{c.ratio:>8.3f}"
        place = f"{disk_name(c.cell.profile):<12}{c.cell.prompt_tokens:>7}{size_text(c.cell.memory_bytes):>11}"
        lines.append(f"{place}  {c.start:<6}{figures}  {interval}")
    told = [c for c in found.changes if c.verdict != "too few runs"]
    few, changed = len(found.changes) - len(told), sum(c.verdict in ("faster", "slower") for c in told)
    if told:
        lines.append(f"{changed} of {len(told)} figures changed beyond the noise")
    for metric, noise in found.noise.items():
        least = max(
            (_seen_change(noise, len(c.a.values), len(c.b.values)) for c in told if c.metric == metric), default=0
        )
        if not least:
            continue
        said = (
            f"{METRICS[metric][0].split(',')[0]}: a run's noise is {100 * noise:.1f} %, so these runs show a change of"
        )
        said += f" {100 * least:.0f} %"
        if least > _WORTH_SEEING:
            runs = _runs_for(_WORTH_SEEING, noise)
            said += f"; one of {100 * _WORTH_SEEING:.0f} % takes about {runs} runs of each, --repeats {runs}"
        lines.append(said)
    if found.only_a or found.only_b:
        lines.append(f"not compared: {found.only_a} cells that only A has, {found.only_b} that only B has")
    if few:
        which = f"of {few} figures" if few < len(found.changes) else "of any figure"
        lines.append(
            f"nothing can be said {which}: it takes {LEAST_RUNS} runs of a cell or more, --repeats {LEAST_RUNS}"
        )
    return "\n".join(lines)
