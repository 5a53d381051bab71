"""Everything that is made of a results file, written beside it; and what there is no place for.

Each file has a mark by which it is known as ours again: others are never replaced unasked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from smallthinker.benchmark.results import FILE, Results, routing_file
from smallthinker.benchmark.summary import CellSummary, summarise
from smallthinker.benchmark.views.table import busy_notes, markdown
from smallthinker.charts.files import MARKED_BYTES, MARKS
from smallthinker.errors import ResultsError
from smallthinker.files import check_output, open_regular, write_whole
from smallthinker.router.trace import FORMAT_NAME

_CHARTS = ("decode", "time", "hits", "prefill", "experts")
_MARKS = {
    ".md": b"Medians, with the least and the most of all runs. Ceilings are rooflines of the very runs",
    ".html": b'<p class="kind">smallthinker bench</p>',
    ".trace": FORMAT_NAME.encode(),
    **MARKS,
    ".jsonl": b"",  # its reader looks at every line
}


def check_folder(folder: Path, prompts: Iterable[int], store: Path, inputs: Iterable[Path], *, force: bool) -> None:
    """Whether a store's results for these prompt lengths may be written there. Raises ResultsError: a file would be
    replaced that is none of ours, unless `force`, or one of the inputs, or the folder is the store itself."""
    inputs = list(inputs)
    if os.path.realpath(folder) == os.path.realpath(store):
        raise ResultsError(f"{folder}: is the store that is measured; give another folder")
    for path in _files(folder, prompts):
        try:
            if not os.path.lexists(path):
                continue
            check_output(path, inputs, replace=True)
            with open_regular(path) as file:
                is_ours = _MARKS[path.suffix] in file.read(MARKED_BYTES)
        except OSError as e:
            raise ResultsError(f"{path}: cannot write: {e.strerror or e}; give another folder") from None
        if not is_ours and not force:
            raise ResultsError(
                f"{path}: is no file of this benchmark, and would be replaced; move it, give another folder, or `force`"
            )


def _files(folder: Path, prompts: Iterable[int]) -> list[Path]:
    charts = [f"{name}-{n}.{kind}" for n in prompts for name in _CHARTS for kind in ("png", "svg")]
    traces = [routing_file(folder, n) for n in prompts]
    return [*(folder / name for name in (FILE, "results.md", "report.html", *charts)), *traces]


class Views(NamedTuple):
    """`files` in the order of interest; `markdown` is the content of results.md; `notes`: of a busy machine."""

    summaries: list[CellSummary]
    markdown: str
    files: list[Path]
    notes: list[str]


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
        write_whole(files[1], text.encode())
        try:
            files = _draw(results, summaries, folder) + files
        except ResultsError as e:
            notice(str(e))
    except OSError as e:
        raise ResultsError(
            f"{folder}: cannot write: {e.strerror or e}; the figures are in {results.path.name}"
        ) from None
    return Views(summaries, text, files, busy_notes(results))


def _draw(results: Results, summaries: list[CellSummary], folder: Path) -> list[Path]:
    from smallthinker.benchmark.views.charts import draw_all
    from smallthinker.benchmark.views.report import report_html
    from smallthinker.charts.files import save

    charts = draw_all(summaries, results.of_kind("routing"))
    report = folder / "report.html"
    write_whole(report, report_html(results, summaries, charts).encode())
    return [report, *(path for chart in charts for path in save(chart, folder))]
