"""One row of the project's table of results, from a results file that somebody measured.

The file comes from anywhere: the schema bounds what it may hold, and what it says is escaped before it is Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from smallthinker.benchmark.matrix import RAW
from smallthinker.benchmark.results import Results, read_results
from smallthinker.benchmark.summary import CellSummary, summarise
from smallthinker.benchmark.views.table import device_text, escaped
from smallthinker.errors import ResultsError
from smallthinker.figures import rounded, size_text
from smallthinker.memory_plan import MIB

COLUMNS = (
    "machine",
    "disk",
    "model",
    "prompt + decoded",
    "budget: decode, tokens/s, cold / warm of ceiling",
    "TTFT, s, cold / warm",
    "commit",
    "measured",
)


def read_submission(path: Path) -> Results:
    """A whole and valid results file with at least one run. Raises ResultsError."""
    results = read_results(path, _refuse)
    if not results.of_kind("run"):
        raise ResultsError(f"{path}: expected at least one run, found none; let `smallthinker bench` finish first")
    unknown = {row["profile"] for row in results.rows if "profile" in row} - {RAW, *results.environment["profiles"]}
    if unknown:
        raise ResultsError(
            f"{path}: profile {sorted(unknown)[0]!r}: expected its figures in the first line, found none"
        )
    return results


def _refuse(notice: str) -> NoReturn:
    raise ResultsError(f"{notice}; let `smallthinker bench` go on from there first")


def header() -> str:
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def row(results: Results) -> str:
    """The file in one line of Markdown: every budget, on the real disk if that was measured, the shortest prompt."""
    environment, summaries = results.environment, summarise(results)
    machine, model, disk = (environment[key] for key in ("machine", "model", "disk"))
    profiles = dict.fromkeys(s.cell.profile for s in summaries)
    profile = RAW if RAW in profiles else next(iter(profiles))
    prompt = min(s.cell.prompt_tokens for s in summaries if s.cell.profile == profile)
    shown = [s for s in summaries if s.cell.profile == profile and s.cell.prompt_tokens == prompt]
    budgets = dict.fromkeys(s.cell.memory_bytes for s in shown)
    decode, ttft = [], []
    for budget in budgets:
        starts = [s for s in shown if s.cell.memory_bytes == budget]
        ceiling = max(s.decode_ceiling for s in starts)
        decode.append(f"{size_text(budget)}: {_both(starts, 'decode')} of {rounded(ceiling)}")
        ttft.append(_both(starts, "ttft"))
    if profile == RAW:
        storage = f"{device_text(disk)}, {disk['filesystem'] or 'unknown file system'}"
    else:
        storage = f"{profile}, {'emulated' if environment['settings']['throttle'] == 'emulated' else 'throttled'}"
    model_bytes = model["num_experts"] * model["record_bytes"] + model["dense_bytes"]
    limit = ", hard limit" if environment["settings"]["limit"] else ""
    cells = (
        escaped(f"{machine['cpu']}, {machine['cores']} cores, {size_text(machine['memory_bytes'])}"),
        escaped(storage),
        escaped(f"{model['name']}, {model['quant']}, {model_bytes / MIB:,.0f} MiB"),
        f"{prompt} + {environment['settings']['tokens']}{limit}",
        "<br>".join(decode),
        "<br>".join(ttft),
        escaped(machine["commit"] or environment["versions"]["smallthinker"]),
        environment["measured"][:10],
    )
    return f"| {' | '.join(cells)} |"


def _both(starts: Sequence[CellSummary], name: str) -> str:
    """Of one budget: the medians, cold and warm."""
    return " / ".join(rounded(getattr(s, name).median) for s in starts)
