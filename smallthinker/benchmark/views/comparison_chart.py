"""Two results files side by side: every cell that both have, with the spread of its runs."""

from __future__ import annotations

from smallthinker.benchmark.compare import METRICS, BenchComparison, CellChange
from smallthinker.benchmark.views.table import disk_name
from smallthinker.charts.style import INK, LINE_COLORS, WIDTH, Chart, legend_below, style
from smallthinker.figures import rounded, size_text


def comparison_chart(found: BenchComparison) -> Chart:
    """A panel for each figure, a line for each cell: A above, B below, bars from the least to the most of the runs."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((change.cell, change.start) for change in found.changes))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(cells)), layout="constrained")
    places = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    for axes, (metric, (title, _)) in zip(places, METRICS.items(), strict=True):
        changes = {(c.cell, c.start): c for c in found.changes if c.metric == metric}
        for spread, shift, color, name in (("a", -0.17, LINE_COLORS[0], "A"), ("b", 0.17, LINE_COLORS[1], "B")):
            runs = [getattr(changes[cell], spread) for cell in cells]
            axes.errorbar(
                [of.median for of in runs],
                [place + shift for place in range(len(cells))],
                xerr=[[of.median - of.least for of in runs], [of.most - of.median for of in runs]],
                fmt="o", color=color, markersize=5, capsize=2.5, elinewidth=1.2,
                label=f"{name}: {found.name_a if name == 'A' else found.name_b}",
            )  # fmt: skip
        for place, cell in enumerate(cells):
            change = changes[cell]
            if change.verdict in ("faster", "slower"):
                at = max(change.a.most, change.b.most)
                axes.annotate(f"{change.verdict}, x{change.ratio:.2f}", (at, place), (6, 0), color=INK, fontsize=8,
                              textcoords="offset points", va="center")  # fmt: skip
        axes.set_title(title, fontsize=9, loc="left", color=INK)
        style(axes, "x")
        axes.set_xlim(left=0)
        axes.margins(x=0.25)
        axes.xaxis.set_major_formatter(lambda value, _: rounded(value))
    places[0].set_yticks(range(len(cells)), [_name(changes[cell]) for cell in cells])
    places[0].set_ylim(len(cells) - 0.4, -0.6)
    legend_below(figure, places[:1], 1)
    return Chart("compare", "A beside B", "Medians; bars span all runs.", figure, {})


def _name(change: CellChange) -> str:
    cell = change.cell
    return f"{disk_name(cell.profile)}, {size_text(cell.memory_bytes)}, prompt {cell.prompt_tokens}, {change.start}"
