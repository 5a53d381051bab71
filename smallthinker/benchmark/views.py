"""Everything that is made of a results file, written beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from smallthinker.benchmark.results import Results
from smallthinker.benchmark.summary import CellSummary, summarise
from smallthinker.benchmark.table import markdown
from smallthinker.errors import ResultsError


class Views(NamedTuple):
    """`files` in the order of interest; `markdown` is the content of results.md."""

    summaries: list[CellSummary]
    markdown: str
    files: list[Path]


def write_views(results: Results, notice: Callable[[str], None]) -> Views:
    """results.md, plots and report.html. Without matplotlib the table alone, and `notice` is told.

    Raises ResultsError where not a single cell could be measured, or the folder can't be written.
    """
    folder, summaries = results.path.parent, summarise(results)
    if not summaries:
        why = next((row["error"] for row in results.of_kind("failed")), "no run has ended yet")
        raise ResultsError(f"{results.path}: nothing could be measured: {why}")
    text = markdown(results, summaries)
    files = [results.path, folder / "results.md"]
    try:
        files[1].write_text(text, encoding="utf-8")
        try:
            files = _draw(results, summaries, folder) + files
        except ResultsError as e:
            notice(str(e))
    except OSError as e:
        raise ResultsError(
            f"{folder}: cannot write: {e.strerror or e}; the figures are in {results.path.name}"
        ) from None
    return Views(summaries, text, files)


def _draw(results: Results, summaries: list[CellSummary], folder: Path) -> list[Path]:
    from smallthinker.benchmark.chart_files import save
    from smallthinker.benchmark.charts import draw_all
    from smallthinker.benchmark.report import report_html

    charts = draw_all(summaries, results.of_kind("routing"))
    report = folder / "report.html"
    report.write_text(report_html(results, summaries, charts), encoding="utf-8")
    return [report, *(path for chart in charts for path in save(chart, folder))]
