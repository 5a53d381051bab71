"""The command line: arguments in, an exit code out. With `commands` the only place that prints, reads the environment's
streams or exits."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from smallthinker.commands import COMMANDS
from smallthinker.commands.options import EXIT_INTERRUPTED, EXIT_USAGE, Parser
from smallthinker.errors import SmallThinkerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for anything wrong with input or system, 130 for Ctrl-C.
    SIGTERM and SIGHUP raise SystemExit with 143 and 129, once a command has cleaned up."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        with _signals_unwind():
            code: int = args.handler(args)
        sys.stdout.flush()
        return code
    except SmallThinkerError as e:
        print(f"smallthinker {args.command}: error: {' '.join(str(e).split())}", file=sys.stderr)
        return EXIT_USAGE
    except ImportError as e:
        if not str(e).startswith("SMALLTHINKER_ISA"):  # the user's own setting, found wrong when the kernels load
            raise
        print(f"smallthinker {args.command}: error: {e}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `smallthinker run ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's last flush complains
        return 0


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal end a command by way of its clean-up, as Ctrl-C does: 128 + their number.

    SystemExit, not KeyboardInterrupt, which a conversation answers with a hint. Only the first one counts: `timeout`
    sends it to the process and to its group. One that is ignored (nohup) stays so; `serve` puts its own in their place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> NoReturn:
        for each in previous:
            signal.signal(each, lambda *_: None)
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
    try:
        for number in previous:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _parser() -> Parser:
    parser = Parser(
        prog="smallthinker",
        description="Runs sparse Mixture-of-Experts language models that are larger than memory.",
        epilog='example: smallthinker run "Once upon a time"',
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"smallthinker {version('smallthinker')}")
        parser.exit(0)
