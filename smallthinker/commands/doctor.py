"""`smallthinker doctor`: what this machine and this build can do, and what to mend."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.options import EXIT_USAGE, Commands, add_command


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        handle,
        "say whether a model would run here, what was chosen and why, and what to mend",
        "smallthinker doctor ./4b-store",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        type=Path,
        help="a store, to see whether it fits, or a folder whose disk is looked at (default: the current folder)",
    )
    parser.add_argument(
        "--report", action="store_true", help="print a block for a bug report instead, without paths and names"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.diagnosis.doctor import diagnose
    from smallthinker.diagnosis.report import diagnosis_text, report_block

    facts = diagnose(args.path)
    if args.json:
        print(json.dumps(facts | {"report": report_block(facts)}))
    else:
        print(report_block(facts) if args.report else diagnosis_text(facts))
    return 0 if facts["would_run"] else EXIT_USAGE
