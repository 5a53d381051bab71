"""A prediction: what the memory goes to, and the speed over the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from smallthinker.charts.style import (
    INK,
    LINE_COLORS,
    MUTED,
    PART_COLORS,
    WIDTH,
    Chart,
    dashed,
    legend_below,
    memory_axis,
    speed_axis,
    style,
)
from smallthinker.figures import size_text
from smallthinker.prediction.predict import Prediction
from smallthinker.prediction.report import ERROR_BAND, Report

_PARTS = {
    "interpreter_bytes": "interpreter", "tokenizer_bytes": "tokenizer", "dense_bytes": "dense weights",
    "kv_bytes": "KV cache", "scratch_bytes": "scratch", "io_bytes": "reads in flight", "slots_bytes": "",
}  # fmt: skip


def plan_chart(report: Report, curve: Sequence[Prediction]) -> Chart:
    """The memory of each budget that was asked for as a bar; decode speeds of all of these and of `curve`."""
    from matplotlib.figure import Figure

    asked = report.predictions
    figure = Figure(figsize=(WIDTH, 4.2 + 0.3 * len(asked)), layout="constrained")
    memory, speed = figure.subplots(2, 1, height_ratios=[0.6 + 0.3 * len(asked), 3])
    left = [0.0] * len(asked)
    for (part, name), color in zip(_PARTS.items(), PART_COLORS, strict=False):
        widths = [asdict(p.plan)[part] / 2**20 for p in asked]
        label = name or asked[0].plan.records
        memory.barh(range(len(asked)), widths, 0.68, left=left, color=color, label=label)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    memory.set_yticks(range(len(asked)), [size_text(p.plan.budget_bytes) for p in asked])
    memory.set_ylim(len(asked) - 0.4, -0.6)
    memory.set_xlabel("MiB")
    style(memory, "x")
    title = f"{report.model.name}, {report.model.quant}: what each budget is made of, and decode speeds"
    memory.set_title(title, fontsize=9, loc="left", color=INK)

    points = sorted({p.plan.budget_bytes: p for p in (*curve, *asked)}.items())
    budgets = [budget for budget, _ in points]
    lines = {
        "first answer": [p.first_decode.tok_per_sec for _, p in points],
        "later ones": [p.later_decode.tok_per_sec for _, p in points],
    }
    roofs = [p.later_decode.roofs.tok_per_sec for _, p in points]
    speed.plot(budgets, roofs, "--", color=MUTED, linewidth=1.1)
    for (name, values), color in zip(lines.items(), LINE_COLORS, strict=False):
        speed.plot(budgets, values, "o-", color=color, markersize=4, label=name)
        low, high = [v / (1 + ERROR_BAND) for v in values], [v * (1 + ERROR_BAND) for v in values]
        speed.fill_between(budgets, low, high, color=color, alpha=0.12, linewidth=0)
    style(speed, "y")
    every = [value for values in lines.values() for value in values]
    speed_axis(speed, min(every) / (1 + ERROR_BAND), max(max(every) * (1 + ERROR_BAND), *roofs))
    memory_axis(speed, budgets)
    speed.set_ylabel("tokens/s")
    legend_below(figure, [memory, speed], 5, [dashed("dashed: the roofline of later answers")])
    return Chart("plan", title, "Predicted. The band holds nine of ten measured speeds.", figure, {})
