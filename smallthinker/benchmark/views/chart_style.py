"""The look of all charts: colours, axes, legends, and panels side by side. Knows nothing of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smallthinker.benchmark.matrix import STARTS, Start
from smallthinker.benchmark.series import size_text
from smallthinker.benchmark.summary import CellSummary
from smallthinker.errors import ResultsError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Every colour is told from all others by its hex digits, so that a page can put its own in their place
# (chart_files.inline).
INK, MUTED, GRID, SURFACE = "#1b1f24", "#5c6672", "#dfe3e8", "#ffffff"
PROFILE_COLORS = ("#1f6fd6", "#d2691e", "#138a6b", "#8250c4", "#c23b58", "#7a6a12", "#0f8296", "#57606b")
PART_COLORS = ("#2f6db5", "#5a9bd8", "#a3c8ea", "#7f93a8", "#b4bec9", "#c9a7dd", "#8f6fb8", "#e08a3c")
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface",
    **{color: f"profile-{n}" for n, color in enumerate(PROFILE_COLORS)},
    **{color: f"part-{n}" for n, color in enumerate(PART_COLORS)},
}  # fmt: skip
WIDTH = 9.2  # inches


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


def panels_by_start(rows: Sequence[CellSummary], height: float) -> tuple[Figure, dict[Start, Axes]]:
    """One panel for each start, side by side with one scale."""
    from matplotlib.figure import Figure

    starts = [start for start in STARTS if any(s.start == start for s in rows)]
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    titles = {"cold": "cold: the first answer", "warm": "warm: the second answer"}
    for start, axes in zip(starts, panels, strict=True):
        axes.set_title(titles[start], fontsize=9, loc="left", color=INK)
        style(axes, "y")
    return figure, dict(zip(starts, panels, strict=True))


def style(axes: Axes, grid: str) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom") and bool(grid) and side != {"x": "left", "y": "left"}[grid])
        spine.set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    if grid:
        axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def budget_axis(axes: Axes, rows: Sequence[CellSummary]) -> None:
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


def legend(figure: Figure, panels: dict[Start, Axes], notes: list[str]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    if notes:
        from matplotlib.lines import Line2D

        handles, labels = [*handles, Line2D([], [], linestyle="--", color=MUTED)], [*labels, *notes]
    legend_below(figure, handles, labels, 5)


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> None:
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set_color(INK)


def profile_colors(rows: Sequence[CellSummary]) -> dict[str, str]:
    profiles = dict.fromkeys(s.cell.profile for s in rows)
    return {profile: PROFILE_COLORS[n % len(PROFILE_COLORS)] for n, profile in enumerate(profiles)}


def prompt_text(rows: Sequence[CellSummary]) -> str:
    return f"after a prompt of {rows[0].cell.prompt_tokens} tokens"
