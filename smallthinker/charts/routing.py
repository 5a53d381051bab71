"""Which experts a routing uses, and what a cache would make of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smallthinker.cache.replay import Replay
from smallthinker.charts.style import (
    INK,
    LINE_COLORS,
    MUTED,
    SURFACE,
    WIDTH,
    Chart,
    legend_below,
    memory_axis,
    panels,
    style,
)

_SHADES = 40


def use_chart(name: str, title: str, use: npt.NDArray[np.float64], tokens: str) -> Chart:
    """use: the share of the tokens that use each expert, [layers, experts]."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    use = -np.sort(-use, axis=1)
    layers, experts = use.shape
    figure = Figure(figsize=(WIDTH, min(6.5, 1.4 + 0.13 * layers)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(experts + 1) + 0.5, np.arange(layers + 1) - 0.5
    shades = colormaps["viridis"].resampled(_SHADES)
    mesh = axes.pcolormesh(*places, 100 * use, cmap=shades, vmin=0, edgecolors=SURFACE, linewidth=0.25)
    axes.invert_yaxis()
    axes.set_xlabel(f"experts of a layer ({experts}), the most used first")
    axes.set_ylabel("layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("% of the tokens", color=MUTED)
    bar.ax.tick_params(colors=MUTED, length=0)
    assert bar.solids is not None
    bar.solids.set_rasterized(False)  # an image, even one inside the file, is what the report's policy forbids
    bar.outline.set_visible(False)
    style(axes, "")
    return Chart(
        name, title,
        f"The share of {tokens} that use each expert. Were all used alike, every field would have the same colour, "
        f"{100 * use[0].sum() / experts:.1f} %.", figure, {},
    )  # fmt: skip


def replay_chart(title: str, replays: Sequence[Replay], record_bytes: int) -> Chart:
    """Hit rates over the memory of the experts, a line for each policy."""
    replays = sorted(replays, key=lambda of: of.slots)
    sizes = [of.slots * record_bytes for of in replays]
    figure, (axes,) = panels([title], 3.6)
    axes.plot(sizes, [100 * of.optimum for of in replays], "--", color=INK, linewidth=1.1, label="optimum")
    for n, policy in enumerate(replays[0].hit_rates):
        rates = [100 * of.hit_rates[policy] for of in replays]
        axes.plot(sizes, rates, "o-", color=LINE_COLORS[n % len(LINE_COLORS)], markersize=4, label=policy)
    axes.set_ylim(0, 103)
    axes.set_ylabel("hit rate, %")
    memory_axis(axes, sizes, "memory of the experts alone")
    legend_below(figure, [axes], 6)
    return Chart("cache-sim", title, "The optimum knows the future; no cache of that size can exceed it.", figure, {})
