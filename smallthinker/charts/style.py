"""The look of all charts: colours, axes, legends. Knows nothing of what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smallthinker.errors import ResultsError
from smallthinker.figures import rounded

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Every colour is told from all others by its hex digits, so that a page can put its own in their place (files.inline).
INK, MUTED, GRID, SURFACE = "#1b1f24", "#5c6672", "#dfe3e8", "#ffffff"
LINE_COLORS = ("#1f6fd6", "#d2691e", "#138a6b", "#8250c4", "#c23b58", "#7a6a12", "#0f8296", "#57606b")
PART_COLORS = ("#2f6db5", "#5a9bd8", "#a3c8ea", "#7f93a8", "#b4bec9", "#c9a7dd", "#8f6fb8", "#e08a3c")
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface",
    **{color: f"profile-{n}" for n, color in enumerate(LINE_COLORS)},
    **{color: f"part-{n}" for n, color in enumerate(PART_COLORS)},
}  # fmt: skip
WIDTH = 9.2  # inches
_LOG_FROM = 12  # values this far apart no longer fit one linear axis


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
    # Names come from files: a $ in one begins no formula.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "smallthinker", "font.size": 9})
    matplotlib.rcParams["text.parse_math"] = False


def panels(titles: Sequence[str], height: float, *, same_scale: bool = True) -> tuple[Figure, list[Axes]]:
    """One panel for each title, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    found = list(figure.subplots(1, len(titles), sharey=same_scale, squeeze=False)[0])
    for title, axes in zip(titles, found, strict=True):
        axes.set_title(title, fontsize=9, loc="left", color=INK)
        style(axes, "y")
    return figure, found


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


def memory_axis(axes: Axes, sizes: Iterable[float], label: str = "memory budget of the whole process") -> None:
    """x in bytes, with a mark at each of the sizes that there is room for."""
    budgets = sorted(set(sizes))
    spread = budgets[-1] / budgets[0]
    if spread >= 4:
        axes.set_xscale("log", base=2)
    shown = [budgets[0]]
    reach = np.log(spread) if spread >= 4 else float(budgets[-1] - budgets[0])
    for budget in budgets[1:]:  # labels that would overlap are left out
        apart = np.log(budget / shown[-1]) if spread >= 4 else float(budget - shown[-1])
        if apart >= 0.13 * reach:
            shown.append(budget)
    axes.set_xticks(shown, [_short(b) for b in shown])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel(label)


def _short(nbytes: float) -> str:
    return f"{rounded(nbytes / 2**30)} GiB" if nbytes >= 2**30 else f"{rounded(nbytes / 2**20)} MiB"


def speed_axis(axes: Axes, least: float, most: float) -> None:
    """y from 0, or in steps of 1, 2 and 5 where the values are far apart."""
    from matplotlib.ticker import LogLocator

    if most > _LOG_FROM * least > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, most * 1.08)
    axes.yaxis.set_major_formatter(lambda value, _: rounded(value))


def legend_below(figure: Figure, axes: Iterable[Axes], columns: int, more: Sequence[tuple[Artist, str]] = ()) -> None:
    """What `axes` show, then `more`."""
    shown = [pair for each in axes for pair in zip(*each.get_legend_handles_labels(), strict=True)]
    legend = figure.legend(
        [handle for handle, _ in (*shown, *more)],
        [label for _, label in (*shown, *more)],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
    )
    for text in legend.get_texts():
        text.set_color(INK)


def dashed(label: str) -> tuple[Artist, str]:
    """For a legend: what the dashed lines are."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="--", color=MUTED), label
