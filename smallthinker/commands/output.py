"""The form in which a command says what it found: text for people, one JSON object, a table as CSV, and a picture."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallthinker.charts.style import Chart


def add_output(parser: argparse.ArgumentParser, *, rows: str, plot: str) -> None:
    """--json, --csv and --plot; rows, plot: what the table and the picture show."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON object")
    forms.add_argument("--csv", action="store_true", help=f"print a table as CSV: {rows}")
    parser.add_argument("--plot", metavar="FILE", type=Path, help=f"draw {plot}, as .svg or .png")


def check_plot(plot: Path | None, inputs: Iterable[Path]) -> None:
    """Before anything is computed; inputs: what the command reads. Raises ResultsError."""
    if plot is not None:
        from smallthinker.charts.files import check_plot

        check_plot(plot, inputs)


def save_plot(plot: Path | None, draw: Callable[[], Chart]) -> None:
    """Raises ResultsError."""
    if plot is None:
        return
    from smallthinker.charts.files import save_as
    from smallthinker.errors import ResultsError

    try:
        save_as(draw(), plot)
    except OSError as e:
        raise ResultsError(f"{plot}: cannot write: {e.strerror or e}; give another file") from None


def print_found(
    args: argparse.Namespace,
    text: Callable[[], str],
    facts: Callable[[], Mapping[str, Any]],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
) -> None:
    if args.json:
        print(json.dumps(facts()))
    elif args.csv:
        print(csv_text(rows()), end="")
    else:
        print(text())


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line of names, then one for each row, with the units of `--json`. What is nested has names joined by `_`;
    what isn't known is empty."""
    flat = [dict(_flat(row)) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}_")
        else:
            yield before + name.replace(" ", "_"), value
