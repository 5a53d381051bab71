"""One HTML file that shows a benchmark: charts, tables beside them, and where the figures come from.

It holds everything it needs and may load nothing: its policy (the <meta> line) forbids every request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from smallthinker.benchmark.matrix import STARTS
from smallthinker.benchmark.results import Results, Row
from smallthinker.benchmark.summary import PART_NAMES, CellSummary, Spread
from smallthinker.benchmark.views.table import disk_name, facts, notes
from smallthinker.charts.files import inline
from smallthinker.charts.style import Chart
from smallthinker.figures import rounded, size_text
from smallthinker.memory_plan import MIB
from smallthinker.router.trace import RARELY

_HERE = Path(__file__).parent


def report_html(results: Results, summaries: Sequence[CellSummary], charts: Sequence[Chart]) -> str:
    """The whole page. Every text of the results is escaped by the template."""
    templates = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html").render(
        environment=results.environment,
        title=f"{results.environment['model']['name']} on {results.environment['machine']['cpu']}",
        facts=facts(results.environment),
        cards=_cards(summaries),
        prompts=[_section(prompt, summaries, charts, results) for prompt in _prompts(summaries)],
        failed=[
            {"disk": disk_name(row["profile"]), "budget": size_text(row["memory_bytes"]), **row}
            for row in results.of_kind("failed")
        ],
        notes=notes(results, summaries),
        profiles=[
            {"figures": _profile_figures(profile), **profile} for profile in results.environment["profiles"].values()
        ],
        command=command(results, summaries),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
    )


def command(results: Results, summaries: Sequence[CellSummary]) -> str:
    """What measures this again; MODEL is the reader's own."""
    settings = results.environment["settings"]

    def listed(values: Sequence[Any]) -> str:
        return " ".join(dict.fromkeys(map(str, values)))

    parts = [
        "smallthinker bench MODEL",
        f"--memory {listed([f'{s.cell.memory_bytes / MIB:g}MiB' for s in summaries])}",
        f"--storage {listed([s.cell.profile for s in summaries])}",
        f"--prompt {listed([s.cell.prompt_tokens for s in summaries])}",
        f"--max-tokens {settings['tokens']} --seed {settings['seed']} --repeats {len(summaries[0].decode.values)}",
    ]
    flags = (("--text FILE", settings["source"] == "text"), ("--greedy", settings["greedy"]),
             ("--limit", settings["limit"]), ("--real-throttle", settings["throttle"] == "kernel"))  # fmt: skip
    return " ".join([*parts, *(flag for flag, is_on in flags if is_on)])


def _cards(summaries: Sequence[CellSummary]) -> list[Row]:
    """The figures that people look for first, each with what it hangs on."""
    fastest = max(summaries, key=lambda s: s.decode.median)
    smallest = min(summaries, key=lambda s: (s.cell.memory_bytes, -s.decode.median))
    soonest = min(summaries, key=lambda s: s.ttft.median)
    best_use = max(summaries, key=lambda s: s.decode.median / s.decode_ceiling if s.decode_ceiling else 0.0)

    def where(s: CellSummary) -> str:
        return f"{size_text(s.cell.memory_bytes)}, {disk_name(s.cell.profile)}, {s.start}"

    share = f"{100 * best_use.decode.median / best_use.decode_ceiling:.0f}" if best_use.decode_ceiling else "-"
    soon = f"prompt of {soonest.cell.prompt_tokens}, {where(soonest)}"
    return [
        {"name": "fastest", **_median_and_range(fastest.decode), "unit": "tokens/s", "where": where(fastest)},
        {"name": "in the least memory", **_median_and_range(smallest.decode), "unit": "tokens/s",
         "where": where(smallest)},
        {"name": "soonest first token", **_median_and_range(soonest.ttft), "unit": "s", "where": soon},
        {"name": "nearest to its ceiling", "median": share, "range": "", "unit": "%", "where": where(best_use)},
    ]  # fmt: skip


def _prompts(summaries: Sequence[CellSummary]) -> list[int]:
    return sorted({s.cell.prompt_tokens for s in summaries})


def _section(prompt: int, summaries: Sequence[CellSummary], charts: Sequence[Chart], results: Results) -> Row:
    """All of one prompt length: its charts with their tables, and the table of every figure."""
    rows = [s for s in summaries if s.cell.prompt_tokens == prompt]
    tables = {
        f"decode-{prompt}": _speed_table(rows, lambda s: (s.decode, s.decode_ceiling, s.decode_bound)),
        f"prefill-{prompt}": _speed_table(rows, lambda s: (s.prefill, s.prefill_ceiling, s.prefill_bound)),
        f"time-{prompt}": _table(
            ["disk", "budget", "start", *(f"{part}, ms" for part in PART_NAMES)],
            [[*_place(s), *(rounded(1000 * s.parts[part]) for part in PART_NAMES)] for s in rows],
        ),
        f"hits-{prompt}": _table(
            ["disk", "budget", "start", "hit rate, %", "Belady's bound, %"],
            [[*_place(s), f"{100 * s.hit_rate:.1f}", f"{100 * s.best_hit_rate:.1f}"] for s in rows],
        ),
    }
    routing = results.routing(prompt)
    if routing is not None:
        tables[f"experts-{prompt}"] = _use_table(routing)
    return {
        "tokens": prompt,
        "figures": [
            {"title": c.title, "caption": c.caption, "svg": Markup(inline(c)), "table": tables[c.name]}
            for c in charts
            if c.name in tables
        ],
        "table": _all_figures(rows),
    }


def _place(s: CellSummary) -> list[str]:
    return [disk_name(s.cell.profile), size_text(s.cell.memory_bytes), s.start]


def _table(columns: list[str], rows: list[list[str]]) -> Row:
    return {"columns": columns, "rows": rows}


def _speed_table(rows: Sequence[CellSummary], of: Any) -> Row:
    lines = []
    for s in rows:
        spread, ceiling, bound = of(s)
        share = f"{100 * spread.median / ceiling:.0f}" if ceiling else "-"
        lines.append([*_place(s), rounded(spread.median), rounded(spread.least), rounded(spread.most),
                      rounded(ceiling), bound, share])  # fmt: skip
    return _table(["disk", "budget", "start", "median", "least", "most", "ceiling", "bound by", "% of it"], lines)


def _use_table(routing: Row) -> Row:
    use = -np.sort(-np.array(routing["use"]), axis=1)
    quarter = max(1, use.shape[1] // 4)
    rows = [
        [str(n), f"{100 * layer[0]:.1f}", f"{100 * layer[:quarter].mean():.1f}", f"{100 * layer[-1]:.1f}",
         f"{100 * (layer < RARELY).mean():.0f}"]
        for n, layer in enumerate(use)
    ]  # fmt: skip
    rarely = f"used by under {100 * RARELY:.0f} % of the tokens, % of the experts"
    return _table(["layer", "most used, %", "top quarter, mean %", "least used, %", rarely], rows)


def _all_figures(rows: Sequence[CellSummary]) -> list[Row]:
    """A row of the main table for each summary, cold ones first."""
    return [
        {
            **dict(zip(("disk", "budget", "start"), _place(s), strict=True)),
            "decode": _median_and_range(s.decode),
            "decode_ceiling": rounded(s.decode_ceiling),
            "decode_bound": s.decode_bound,
            "share": round(100 * min(1.0, s.decode.median / s.decode_ceiling)) if s.decode_ceiling else None,
            "hit_rate": f"{100 * s.hit_rate:.0f}",
            "best_hit_rate": f"{100 * s.best_hit_rate:.0f}",
            "read": rounded(s.read_bytes_per_token / MIB),
            "prefill": _median_and_range(s.prefill),
            "prefill_ceiling": rounded(s.prefill_ceiling),
            "prefill_bound": s.prefill_bound,
            "ttft": _median_and_range(s.ttft),
            "ttft_floor": rounded(s.ttft_floor),
            "peak": f"{(s.limit_peak_bytes or s.peak_memory_bytes) / MIB:,.0f} MiB",
            "ceiling_hits": s.ceiling_hits,
        }
        for s in sorted(rows, key=lambda s: STARTS.index(s.start))
    ]


def _median_and_range(spread: Spread) -> Row:
    has_range = len(spread.values) > 1
    return {
        "median": rounded(spread.median),
        "range": f"{rounded(spread.least)} to {rounded(spread.most)}" if has_range else "",
    }


def _profile_figures(profile: Row) -> str:
    random, sequential = (rounded(profile[f"{kind}_bytes_per_sec"] / 1e6) for kind in ("random", "sequential"))
    return (
        f"{random} MB/s random, {sequential} MB/s sequential, {profile['random_iops']:,.0f} requests/s, "
        f"{1e6 * profile['latency_sec']:,.0f} us, depth {profile['queue_depth']}"
    )
