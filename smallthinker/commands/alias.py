"""`smallthinker alias`: a second name for a model."""

from __future__ import annotations

import argparse

from smallthinker.commands.models import KINDS
from smallthinker.commands.options import Commands, add_command, text
from smallthinker.errors import printable


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "alias",
        handle,
        "give a model a second name; smallthinker rm takes it away again",
        "smallthinker alias ./Qwen3-30B-A3B-Q4_K_M.gguf qwen",
    )
    parser.add_argument("word", metavar="MODEL", type=text, help=f"{KINDS}, which stays where it is")
    parser.add_argument("name", metavar="NAME", type=text, help="the new name")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.library import Library
    from smallthinker.library.resolve import is_path, resolve

    library = Library()
    path, before = resolve(args.word, library), library.alias_target(args.name)
    library.set_alias(args.name, path if is_path(args.word) else args.word)
    name, now = args.name, library.alias_target(args.name)
    is_same = before in (None, now)
    print(printable(f"{name}: another name of {now}" if is_same else f"{name} names {now} now; it named {before}"))
    return 0
