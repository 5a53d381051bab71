"""`smallthinker inspect`: what a store holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.options import Commands, add_command, renamed


def add(commands: Commands) -> None:
    parser = add_command(commands, "inspect", handle, "show what a store holds", "smallthinker inspect ./4b-store")
    parser.add_argument(
        "store", metavar="STORE", type=Path, nargs="?", help="a store or .gguf file (default: the demo model)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    renamed(parser, "--verify", "a command: smallthinker verify STORE")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.diagnosis.inspection import inspection_text
    from smallthinker.expert_store.inspect import describe
    from smallthinker.expert_store.store import Store
    from smallthinker.llm import DEMO_STORE

    with Store.open(args.store or DEMO_STORE) as store:
        facts = describe(store)
        print(json.dumps(facts) if args.json else inspection_text(facts))
    return 0
