"""`smallthinker doctor`: what this machine and this build can do, and what to mend."""

from __future__ import annotations

import argparse
import json

from smallthinker.commands.models import add_model_option, find_model_or_folder, model_word
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
        "word",
        metavar="MODEL",
        nargs="?",
        help="a model, to see whether it fits, or a folder whose disk is looked at (default: the current folder)",
    )
    add_model_option(parser)
    parser.add_argument(
        "--report",
        action="store_true",
        help="print what a bug report needs instead, ready to paste, without paths and names",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.diagnosis.doctor import diagnose
    from smallthinker.diagnosis.report import diagnosis_text, report_block

    facts = diagnose(find_model_or_folder(model_word(args)))
    if args.json:
        print(json.dumps(facts | {"report": report_block(facts)}))
    else:
        print(report_block(facts) if args.report else diagnosis_text(facts))
    return 0 if facts["would_run"] else EXIT_USAGE
