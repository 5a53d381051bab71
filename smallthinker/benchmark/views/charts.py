"""The charts of a benchmark: speeds over budgets, a token's time, hit rates, and the use of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smallthinker.benchmark.matrix import STARTS, Start
from smallthinker.benchmark.results import Row
from smallthinker.benchmark.summary import PART_NAMES, CellSummary, Spread
from smallthinker.benchmark.views.table import disk_name
from smallthinker.charts.routing import use_chart
from smallthinker.charts.style import (
    INK,
    LINE_COLORS,
    PART_COLORS,
    WIDTH,
    Chart,
    dashed,
    legend_below,
    memory_axis,
    panels,
    require_matplotlib,
    speed_axis,
    style,
)
from smallthinker.figures import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS: dict[Start, str] = {"cold": "cold: the first answer", "warm": "warm: the second answer"}


def draw_all(summaries: Sequence[CellSummary], routings: Sequence[Row]) -> list[Chart]:
    """Every chart of a results file. Raises ResultsError without matplotlib."""
    require_matplotlib()
    charts = []
    for prompt in sorted({s.cell.prompt_tokens for s in summaries}):
        rows = [s for s in summaries if s.cell.prompt_tokens == prompt]
        charts += [
            _speed(f"decode-{prompt}", "Decode speed", rows, lambda s: s.decode, lambda s: s.decode_ceiling),
            _time(f"time-{prompt}", rows),
            _hits(f"hits-{prompt}", rows),
            _speed(f"prefill-{prompt}", "Prompt speed", rows, lambda s: s.prefill, lambda s: s.prefill_ceiling),
        ]
    return charts + [_use(row) for row in routings]


def _speed(
    name: str,
    title: str,
    rows: Sequence[CellSummary],
    speed: Callable[[CellSummary], Spread],
    ceiling: Callable[[CellSummary], float],
) -> Chart:
    figure, places = _panels_by_start(rows, 3.5)
    tips: dict[str, str] = {}
    least = min(speed(s).least for s in rows)
    most = max(max(speed(s).most, ceiling(s)) for s in rows)
    for start, axes in places.items():
        for profile, color in _colors(rows).items():
            line = [s for s in rows if s.cell.profile == profile and s.start == start]
            if not line:
                continue
            x = [s.cell.memory_bytes for s in line]
            y = [speed(s).median for s in line]
            spread = [[speed(s).median - speed(s).least for s in line], [speed(s).most - speed(s).median for s in line]]
            axes.plot(x, [ceiling(s) for s in line], "--", color=color, linewidth=1.1, alpha=0.75)
            axes.errorbar(
                x, y, yerr=spread, color=color, linewidth=1.8, capsize=2.5, elinewidth=1, label=disk_name(profile)
            )
            for n, s in enumerate(line):
                gid = f"tip-{start}-{len(tips)}"
                axes.plot([x[n]], [y[n]], "o", color=color, markersize=5, gid=gid)
                tips[gid] = (
                    f"{disk_name(profile)}, {size_text(x[n])}, {start}: {y[n]:.3g} tokens/s "
                    f"({speed(s).least:.3g} to {speed(s).most:.3g}), ceiling {ceiling(s):.3g}"
                )
        speed_axis(axes, least, most)
        memory_axis(axes, [s.cell.memory_bytes for s in rows])
    first = next(iter(places.values()))
    first.set_ylabel("tokens/s")
    legend_below(figure, [first], 5, [dashed("dashed: the roofline of the run")])
    return Chart(
        name, f"{title}, {_prompt_text(rows)}",
        "Median of the runs over the memory budget; bars span all runs, dashed lines are what this processor and disk "
        "allow at that budget.", figure, tips,
    )  # fmt: skip


def _hits(name: str, rows: Sequence[CellSummary]) -> Chart:
    figure, places = _panels_by_start(rows, 3.2)
    tips: dict[str, str] = {}
    for start, axes in places.items():
        mine = [s for s in rows if s.start == start]
        best = {s.cell.memory_bytes: s.best_hit_rate for s in mine}
        budgets = sorted(best)
        axes.plot(budgets, [100 * best[b] for b in budgets], "--", color=INK, linewidth=1.1, label="Belady's bound")
        for profile, color in _colors(rows).items():
            line = [s for s in mine if s.cell.profile == profile]
            axes.plot([s.cell.memory_bytes for s in line], [100 * s.hit_rate for s in line], color=color,
                      linewidth=1.8, label=disk_name(profile))  # fmt: skip
            for s in line:
                gid = f"tip-{start}-{len(tips)}"
                axes.plot([s.cell.memory_bytes], [100 * s.hit_rate], "o", color=color, markersize=5, gid=gid)
                tips[gid] = (
                    f"{disk_name(profile)}, {size_text(s.cell.memory_bytes)}, {start}: {s.hit_rate:.1%} of the experts "
                    f"asked for had been kept, at best {s.best_hit_rate:.1%}"
                )
        axes.set_ylim(0, 103)
        memory_axis(axes, [s.cell.memory_bytes for s in rows])
    first = next(iter(places.values()))
    first.set_ylabel("hit rate of decoding, %")
    legend_below(figure, [first], 5)
    return Chart(
        name, f"Hit rate, {_prompt_text(rows)}",
        "The share of the experts asked for that had been kept in memory; what was guessed and read ahead is no hit. "
        "No cache of that size can exceed Belady's bound, which knows the future.", figure, tips,
    )  # fmt: skip


def _time(name: str, rows: Sequence[CellSummary]) -> Chart:
    from matplotlib.figure import Figure

    profiles, starts = list(_colors(rows)), _starts(rows)
    budgets = sorted({s.cell.memory_bytes for s in rows})
    height = len(profiles) * (0.55 + 0.26 * len(budgets)) + 0.9
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    tips: dict[str, str] = {}
    grid = figure.subplots(len(profiles), len(starts), squeeze=False)
    for row, profile in enumerate(profiles):
        for column, start in enumerate(starts):
            axes = grid[row][column]
            line = [s for s in rows if s.cell.profile == profile and s.start == start]
            places = [budgets.index(s.cell.memory_bytes) for s in line]
            left = np.zeros(len(line))
            for part, color in zip(PART_NAMES, PART_COLORS, strict=True):
                width = np.array([1000 * s.parts[part] for s in line])
                bars = axes.barh(places, width, 0.68, left=left, color=color, label=part)
                for s, bar, ms in zip(line, bars, width, strict=True):
                    gid = f"tip-{start}-{len(tips)}"
                    bar.set_gid(gid)
                    tips[gid] = f"{disk_name(profile)}, {size_text(s.cell.memory_bytes)}, {start}: {part} {ms:.2f} ms"
                left += width
            axes.set_yticks(range(len(budgets)), [size_text(b) for b in budgets] if column == 0 else [])
            axes.set_ylim(len(budgets) - 0.4, -0.6)
            axes.set_title(f"{disk_name(profile)}, {start}", fontsize=9, loc="left", color=INK)
            style(axes, "x")
    for axes in grid[-1]:
        axes.set_xlabel("ms a decoded token")
    legend_below(figure, grid[0][:1], 4)
    return Chart(
        name, f"Where a token's time goes, {_prompt_text(rows)}",
        "Milliseconds of a decoded token, of the run with the median speed. Each panel has a scale of its own.",
        figure, tips,
    )  # fmt: skip


def _use(routing: Row) -> Chart:
    prompt, tokens = routing["prompt_tokens"], routing["tokens"]
    title = f"Expert use by layer, prompt of {prompt} tokens"
    return use_chart(f"experts-{prompt}", title, np.array(routing["use"]), f"{tokens} decoded tokens")


def _panels_by_start(rows: Sequence[CellSummary], height: float) -> tuple[Figure, dict[Start, Axes]]:
    """One panel for each start, side by side with one scale."""
    starts = _starts(rows)
    figure, found = panels([_PANELS[start] for start in starts], height)
    return figure, dict(zip(starts, found, strict=True))


def _starts(rows: Sequence[CellSummary]) -> list[Start]:
    return [start for start in STARTS if any(s.start == start for s in rows)]


def _colors(rows: Sequence[CellSummary]) -> dict[str, str]:
    profiles = dict.fromkeys(s.cell.profile for s in rows)
    return {profile: LINE_COLORS[n % len(LINE_COLORS)] for n, profile in enumerate(profiles)}


def _prompt_text(rows: Sequence[CellSummary]) -> str:
    return f"after a prompt of {rows[0].cell.prompt_tokens} tokens"
