"""`smallthinker list`: the models that are kept here, by name."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from smallthinker.commands.options import Commands, add_command
from smallthinker.errors import SmallThinkerError, one_line, printable
from smallthinker.figures import size

if TYPE_CHECKING:
    from smallthinker.library import LibraryModel

_HEADER = ("NAME", "FAMILY", "SIZE", "FORMAT", "MEMORY", "LAST USED")
_UNITS = ((86400 * 7, "week"), (86400, "day"), (3600, "hour"), (60, "minute"))
_NOT_RUN = {"partial": "not whole", "checkpoint": "to convert"}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "list",
        handle,
        "name the models that are kept here, with the least memory that each runs in",
        "smallthinker list",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.library import Library

    library = Library()
    found = [_row(model) for model in library.models()]
    if args.json:
        print(json.dumps({"folder": str(library.folder), "models": found}))
        return 0
    lines = [_HEADER, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in found:
        if row["note"]:
            print(f"{printable(row['name'])}: {one_line(row['note'])}")
    print(f"kept in {printable(str(library.folder))}; smallthinker pull brings others")
    return 0


def _row(model: LibraryModel) -> dict[str, Any]:
    from smallthinker.library.facts import facts_of
    from smallthinker.library.folder import DEMO, DEMO_IS
    from smallthinker.library.resolve import runnable

    facts, note = None, f"a {DEMO_IS}, bundled to try things with" if model.name == DEMO else None
    try:
        facts = facts_of(runnable(model))
    except (SmallThinkerError, OSError) as e:
        note = str(e).removeprefix(f"{model.name}: ").removeprefix(f"{model.path}: ")
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "path": str(model.path),
        "kind": model.kind,
        "family": facts and facts.family,
        "bytes": model.nbytes,
        "quant": facts and facts.quant,
        "parameters": facts and facts.parameters,
        "context": facts and facts.context,
        "floor_bytes": facts and facts.floor_bytes,
        "full_bytes": facts and facts.full_bytes,
        "modified": model.modified,
        "last_used": model.last_used,
        "note": note,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    also = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
    kind = _NOT_RUN.get(row["kind"]) or f"{row['quant'] or '?'}, {row['kind']}"
    least = "-" if row["floor_bytes"] is None else size(row["floor_bytes"])
    cells = (f"{row['name']}{also}", row["family"] or "-", size(row["bytes"]), kind, least, _ago(row["last_used"]))
    return tuple(printable(cell) for cell in cells)


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    passed = time.time() - moment
    for seconds, unit in _UNITS:
        if passed >= seconds:
            count = int(passed // seconds)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
