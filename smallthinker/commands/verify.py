"""`smallthinker verify`: whether a model's files are what they were when they were made."""

from __future__ import annotations

import argparse
import json
import sys

from smallthinker.commands.models import add_model, find_model, model_word
from smallthinker.commands.options import Commands, ProgressBar, add_command

EXIT_DAMAGED = 1


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        handle,
        "read all of a model and compare it with its checksums; exit code 1 where it is damaged",
        "smallthinker verify ./4b-store",
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.errors import StoreFormatError, StoreReadError, one_line
    from smallthinker.expert_store.store import Store

    with Store.open(find_model(model_word(args), used=False)) as store:
        try:
            with ProgressBar("verifying") as progress:
                found = store.verify(progress)
        except (StoreFormatError, StoreReadError) as e:
            if args.json:
                print(json.dumps({"store": str(store.path), "whole": False, "error": str(e)}))
            print(f"{args.parser.prog}: {one_line(e)}", file=sys.stderr)
            return EXIT_DAMAGED
        facts = {"store": str(store.path), "whole": True, "bytes": found.nbytes, "checksums": found.checksums}
        if args.json:
            print(json.dumps(facts | {"notes": list(found.notes)}))
        else:
            print(f"{store.path}: whole: {found.nbytes / 2**20:,.1f} MiB, {found.checksums} checksums")
            for note in found.notes:
                print(f"note: {note}")
    return 0
