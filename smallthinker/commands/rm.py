"""`smallthinker rm`: models of the models folder, removed."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from smallthinker.commands.options import EXIT_USAGE, Commands, add_command, text
from smallthinker.errors import ModelNotFoundError, RequestError, printable, shown
from smallthinker.figures import size
from smallthinker.terminal import read_input

if TYPE_CHECKING:
    from smallthinker.library import Library
    from smallthinker.library.removal import Removal


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "rm",
        handle,
        "remove models from the models folder, or a name that alias gave",
        "smallthinker rm smollm2",
    )
    parser.add_argument("names", metavar="NAME", nargs="+", type=text, help="as smallthinker list names it")
    parser.add_argument("-y", "--yes", action="store_true", help="don't ask")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.library import Library
    from smallthinker.library.removal import plan_removal, remove

    library, removed = Library(), []
    for name in args.names:  # all of them are there, before anything goes
        _is_alias(library, name)
    for name in args.names:
        if _is_alias(library, name):
            model = library.named(name)
            library.remove_alias(name)
            stays = "" if model is None else f"; the model stays, {model.path if model.is_outside else model.name}"
            _say(args, f"{name}: was another name{stays}")
            removed.append({"name": name, "freed_bytes": 0})
            continue
        removal = plan_removal(library, library.find(name))
        nbytes, links = removal.model.nbytes, any(path.is_symlink() for path in removal.paths)
        what = f"{removal.model.name}: {size(nbytes)} in {removal.model.path}"
        if not args.yes and not _agreed(what):
            print(f"{printable(name)}: kept", file=sys.stderr)
            return EXIT_USAGE
        remove(library, removal)
        _say(args, f"{removal.model.name}: removed, {size(removal.freed_bytes)} freed{_why(removal, nbytes, links)}")
        removed.append({"name": removal.model.name, "freed_bytes": removal.freed_bytes})
    if args.json:
        print(json.dumps({"removed": removed}))
    return 0


def _is_alias(library: Library, name: str) -> bool:
    """Whether it is a name beside the model's own. Raises ModelNotFoundError."""
    model = library.named(name)
    if model is None:
        if library.has_alias(name):  # what it named is gone
            return True
        if "/" in name or "\\" in name or name.startswith("."):
            raise ModelNotFoundError(f"{shown(name)}: rm takes names that smallthinker list shows, no paths")
        library.find(name)
    return bool(model is None or model.is_outside or name in model.aliases)


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise RequestError(f"{what}: not removed: there is nobody to ask; --yes removes it without asking")
    print(f"remove {printable(what)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return read_input(line=True).strip().lower() in ("y", "yes")


def _why(removal: Removal, nbytes: int, links: bool) -> str:
    if removal.freed_bytes >= nbytes:
        return ""
    return "; it was a link, and what it led to stays" if links else "; the rest has another name on this disk"


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.json:
        print(printable(line))
