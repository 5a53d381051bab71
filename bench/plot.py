"""Draws what a bench found. Matplotlib is needed only here: pip install matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot_budgets(path: Path, rows: Mapping[int, Mapping[str, Any]], title: str = "") -> None:
    """Tokens/s over the budget in bytes, with the range of the runs and each budget's roofline, into a file.

    rows: by budget, what `budgets.summary` returns. Exits with one line where matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install matplotlib")
    matplotlib.use("svg")
    # Text as text keeps the file small; the salt makes two drawings of the same figures the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "budgets", "font.size": 9})
    from matplotlib.figure import Figure

    budgets = sorted(rows)
    gib = [budget / (1 << 30) for budget in budgets]
    speed = [rows[budget]["decode_tok_per_sec"] for budget in budgets]
    ranges = [rows[budget]["decode_tok_per_sec_all"] for budget in budgets]
    below = [middle - min(found) for middle, found in zip(speed, ranges, strict=True)]
    above = [max(found) - middle for middle, found in zip(speed, ranges, strict=True)]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(gib, [rows[b]["roofline_tok_per_sec"] for b in budgets], "--", color="#999999", label="roofline")
    axes.errorbar(gib, speed, yerr=[below, above], marker="o", markersize=4, capsize=3, label="measured, range of runs")
    axes.set_xscale("log", base=2)
    axes.set_xticks(gib, [f"{size:.3g}" for size in gib])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("budget, GiB")
    axes.set_ylabel("tokens/s")
    axes.set_title(title)
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
