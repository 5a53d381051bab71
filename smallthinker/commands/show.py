"""`smallthinker show`: what a model is, what it needs, and what its files hold."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from smallthinker.commands.models import add_model, find_model, model_word
from smallthinker.commands.options import Commands, add_command, renamed
from smallthinker.errors import printable
from smallthinker.figures import size


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "show",
        handle,
        "show what a model is, the memory that it needs, and what its files hold",
        "smallthinker show smollm2; smallthinker show ./4b-store",
        aliases=["inspect"],
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    renamed(parser, "--verify", "a command: smallthinker verify MODEL")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.diagnosis.inspection import inspection_text
    from smallthinker.expert_store.inspect import describe
    from smallthinker.expert_store.store import Store

    word = model_word(args)
    path = find_model(word, used=False)
    with Store.open(path) as store:
        facts = describe(store)
    kept = _kept(word, path)
    facts |= kept
    print(json.dumps(facts) if args.json else "\n".join([*_lines(kept), inspection_text(facts)]))
    return 0


def _kept(word: str | None, path: Path) -> dict[str, Any]:
    """What the library knows of it, by the name that was asked for, and the memory that it needs."""
    from smallthinker.library import Library
    from smallthinker.library.facts import facts_of
    from smallthinker.library.library import is_same

    library = Library()
    model = None if word is None else library.named(word)
    if model is None or not is_same(model.path, path):
        model = library.kept_at(path)
    needs = facts_of(path)
    return {
        "name": model and model.name,
        "aliases": list(model.aliases) if model else [],
        "last_used": model and model.last_used,
        "floor_bytes": needs.floor_bytes,
        "full_bytes": needs.full_bytes,
    }


def _lines(kept: dict[str, Any]) -> list[str]:
    from smallthinker.library.folder import DEMO, DEMO_IS

    rows = []
    if kept["name"] is not None:
        also = f", also {', '.join(kept['aliases'])}" if kept["aliases"] else ""
        rows.append(f"{printable(kept['name'])}{also}{f': a {DEMO_IS}' if kept['name'] == DEMO else ''}")
    rows.append(f"  {'memory':<12}{size(kept['floor_bytes'])} at least, {size(kept['full_bytes'])} holds all of it")
    if kept["last_used"] is not None:
        rows.append(f"  {'last used':<12}{time.strftime('%Y-%m-%d %H:%M', time.localtime(kept['last_used']))}")
    return rows
