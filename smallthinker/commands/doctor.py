"""`smallthinker doctor`: what this machine and this build can do."""

from __future__ import annotations

import argparse
import json

from smallthinker.commands.options import EXIT_USAGE, Commands, add_command


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "doctor", handle, "say what this machine and this build can do", "smallthinker doctor --json"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.doctor import diagnose, diagnosis_text

    facts = diagnose()
    print(json.dumps(facts) if args.json else diagnosis_text(facts))
    return EXIT_USAGE if facts["problems"] else 0
