"""Draws what a benchmark found, with matplotlib. One drawing serves as PNG, as SVG and, in a report's colours, inline.

Owns the four kinds of charts and their look. Knows nothing about files of results but their summaries.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smallthinker.benchmark.matrix import STARTS, Start
from smallthinker.benchmark.results import Row
from smallthinker.benchmark.series import size_text
from smallthinker.benchmark.summary import PART_NAMES, CellSummary, Spread
from smallthinker.benchmark.table import disk_name, number
from smallthinker.errors import ResultsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Every colour is told from all others by its hex digits, so that a report can put its own in their place (`inline`).
INK, MUTED, GRID, SURFACE = "#1b1f24", "#5c6672", "#dfe3e8", "#ffffff"
PROFILE_COLORS = ("#1f6fd6", "#d2691e", "#138a6b", "#8250c4", "#c23b58", "#7a6a12", "#0f8296", "#57606b")
PART_COLORS = ("#2f6db5", "#5a9bd8", "#a3c8ea", "#7f93a8", "#b4bec9", "#c9a7dd", "#8f6fb8", "#e08a3c")
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface",
    **{color: f"profile-{n}" for n, color in enumerate(PROFILE_COLORS)},
    **{color: f"part-{n}" for n, color in enumerate(PART_COLORS)},
}  # fmt: skip
_LOG_FROM = 12  # tokens/s this far apart no longer fit one linear axis
_WIDTH = 9.2  # inches
_SHADES = 40


class Chart(NamedTuple):
    """A drawing and what to call it. `tips` by the id of what they are about."""

    name: str
    title: str
    caption: str
    figure: Figure
    tips: dict[str, str]


def require_matplotlib() -> None:
    """Raises ResultsError where it is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ResultsError("plots and the report need matplotlib: pip install 'smallthinker[bench]'") from None
    # Text as text keeps a drawing small and searchable; the salt makes two drawings of the same figures the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "smallthinker", "font.size": 9})


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
    return charts + [_use(f"experts-{row['prompt_tokens']}", row) for row in routings]


def save(chart: Chart, folder: Path) -> list[Path]:
    """As PNG and SVG, the same bytes for the same figures."""
    paths = [folder / f"{chart.name}.{kind}" for kind in ("png", "svg")]
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        chart.figure.savefig(path, dpi=160, metadata=metadata)
    return paths


def inline(chart: Chart) -> str:
    """An <svg> element to stand in a page: its colours are the page's variables, its ids its own, its tips titles."""
    buffer = io.StringIO()
    chart.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    for name, tip in chart.tips.items():
        text = text.replace(f'<g id="{name}">', f'<g id="{name}"><title>{_escaped(tip)}</title>', 1)
    prefix = f"{chart.name}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", text)
    label = _escaped(f"{chart.title}. {chart.caption}")
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1)


def _escaped(text: str) -> str:
    from html import escape

    return escape(text).replace("\\", "&#92;")  # a backslash would be the regular expression's


def _speed(
    name: str,
    title: str,
    rows: Sequence[CellSummary],
    speed: Callable[[CellSummary], Spread],
    ceiling: Callable[[CellSummary], float],
) -> Chart:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = _panels(rows, 3.5)
    tips: dict[str, str] = {}
    least = min(speed(s).least for s in rows)
    most = max(max(speed(s).most, ceiling(s)) for s in rows)
    for start, axes in panels.items():
        for profile, color in _colors(rows).items():
            line = [s for s in rows if s.cell.profile == profile and s.start == start]
            if not line:
                continue
            x = [s.cell.memory_bytes for s in line]
            y = [speed(s).median for s in line]
            spread = [[speed(s).median - speed(s).least for s in line], [speed(s).most - speed(s).median for s in line]]
            axes.plot(x, [ceiling(s) for s in line], "--", color=color, linewidth=1.1, alpha=0.75)
            axes.errorbar(x, y, yerr=spread, color=color, linewidth=1.8, capsize=2.5, elinewidth=1, label=disk_name(profile))
            for n, s in enumerate(line):
                gid = f"tip-{start}-{len(tips)}"
                axes.plot([x[n]], [y[n]], "o", color=color, markersize=5, gid=gid)
                tips[gid] = (
                    f"{disk_name(profile)}, {size_text(x[n])}, {start}: {y[n]:.3g} tokens/s "
                    f"({speed(s).least:.3g} to {speed(s).most:.3g}), ceiling {ceiling(s):.3g}"
                )
        if most > _LOG_FROM * least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: number(value))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, most * 1.08)
            axes.yaxis.set_major_formatter(lambda value, _: number(value))
        _budget_axis(axes, rows)
    panels[STARTS[0]].set_ylabel("tokens/s")
    _legend(figure, panels, ["dashed: the roofline of the run"])
    return Chart(
        name, f"{title}, {_prompt(rows)}",
        "Median of the runs over the memory budget; bars span all runs, dashed lines are what this processor and disk "
        "allow at that budget.", figure, tips,
    )  # fmt: skip


def _hits(name: str, rows: Sequence[CellSummary]) -> Chart:
    figure, panels = _panels(rows, 3.2)
    tips: dict[str, str] = {}
    for start, axes in panels.items():
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
                    f"{disk_name(profile)}, {size_text(s.cell.memory_bytes)}, {start}: {s.hit_rate:.1%} of the experts asked "
                    f"for had been kept, at best {s.best_hit_rate:.1%}"
                )
        axes.set_ylim(0, 103)
        _budget_axis(axes, rows)
    panels[STARTS[0]].set_ylabel("hit rate of decoding, %")
    _legend(figure, panels, [])
    return Chart(
        name, f"Hit rate, {_prompt(rows)}",
        "The share of the experts asked for that had been kept in memory; what was guessed and read ahead is no hit. No "
        "cache of that size can exceed Belady's bound, which knows the future.", figure, tips,
    )  # fmt: skip


def _time(name: str, rows: Sequence[CellSummary]) -> Chart:
    from matplotlib.figure import Figure

    profiles, starts = list(_colors(rows)), [start for start in STARTS if any(s.start == start for s in rows)]
    budgets = sorted({s.cell.memory_bytes for s in rows})
    height = len(profiles) * (0.55 + 0.26 * len(budgets)) + 0.9
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
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
            _style(axes, "x")
    for axes in grid[-1]:
        axes.set_xlabel("ms a decoded token")
    handles, labels = grid[0][0].get_legend_handles_labels()
    _legend_below(figure, handles, labels, 4)
    return Chart(
        name, f"Where a token's time goes, {_prompt(rows)}",
        "Milliseconds of a decoded token, of the run with the median speed. Each panel has a scale of its own.",
        figure, tips,
    )  # fmt: skip


def _use(name: str, routing: Row) -> Chart:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    use = -np.sort(-np.array(routing["use"]), axis=1)
    layers, experts = use.shape
    figure = Figure(figsize=(_WIDTH, min(6.5, 1.4 + 0.13 * layers)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(experts + 1) + 0.5, np.arange(layers + 1) - 0.5
    shades = colormaps["viridis"].resampled(_SHADES)
    mesh = axes.pcolormesh(*places, 100 * use, cmap=shades, vmin=0, edgecolors=SURFACE, linewidth=0.4)
    axes.invert_yaxis()
    axes.set_xlabel(f"experts of a layer ({experts}), the most used first")
    axes.set_ylabel("layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("% of the tokens", color=MUTED)
    bar.ax.tick_params(colors=MUTED, length=0)
    bar.solids.set_rasterized(False)  # an image, even one inside the file, is what the report's policy forbids
    bar.outline.set_visible(False)  # type: ignore[operator]
    _style(axes, "")
    return Chart(
        name, f"Expert use by layer, prompt of {routing['prompt_tokens']} tokens",
        f"The share of {routing['tokens']} decoded tokens that use each expert. Were all used alike, every field would "
        f"have the same colour, {100 * use[0].sum() / experts:.1f} %.", figure, {},
    )  # fmt: skip


def _panels(rows: Sequence[CellSummary], height: float) -> tuple[Figure, dict[Start, Axes]]:
    """One panel for each start, side by side with one scale."""
    from matplotlib.figure import Figure

    starts = [start for start in STARTS if any(s.start == start for s in rows)]
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    titles = {"cold": "cold: the first answer", "warm": "warm: the second answer"}
    for start, axes in zip(starts, panels, strict=True):
        axes.set_title(titles[start], fontsize=9, loc="left", color=INK)
        _style(axes, "y")
    return figure, dict(zip(starts, panels, strict=True))


def _style(axes: Axes, grid: str) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and bool(grid) and side != {"x": "left", "y": "left"}[grid])
        spine.set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    if grid:
        axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def _budget_axis(axes: Axes, rows: Sequence[CellSummary]) -> None:
    budgets = sorted({s.cell.memory_bytes for s in rows})
    spread = budgets[-1] / budgets[0]
    if spread >= 4:
        axes.set_xscale("log", base=2)
    shown = [budgets[0]]
    reach = np.log(spread) if spread >= 4 else float(budgets[-1] - budgets[0])
    for budget in budgets[1:]:  # labels that would overlap are left out
        apart = np.log(budget / shown[-1]) if spread >= 4 else float(budget - shown[-1])
        if apart >= 0.13 * reach:
            shown.append(budget)
    axes.set_xticks(shown, [size_text(b) for b in shown])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel("memory budget of the whole process")


def _legend(figure: Figure, panels: dict[Start, Axes], notes: list[str]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    if notes:
        from matplotlib.lines import Line2D

        handles, labels = [*handles, Line2D([], [], linestyle="--", color=MUTED)], [*labels, *notes]
    _legend_below(figure, handles, labels, 5)


def _legend_below(figure: Figure, handles: list[object], labels: list[str], columns: int) -> None:
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)  # type: ignore[call-overload]
    for text in legend.get_texts():
        text.set_color(INK)


def _colors(rows: Sequence[CellSummary]) -> dict[str, str]:
    profiles = dict.fromkeys(s.cell.profile for s in rows)
    return {profile: PROFILE_COLORS[n % len(PROFILE_COLORS)] for n, profile in enumerate(profiles)}


def _prompt(rows: Sequence[CellSummary]) -> str:
    return f"after a prompt of {rows[0].cell.prompt_tokens} tokens"
