"""The command line: arguments in, an exit code out. With `commands` and `terminal` the only place that prints, reads
the environment's streams or exits."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from smallthinker import terminal
from smallthinker.commands import COMMANDS
from smallthinker.commands.options import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, Parser, text
from smallthinker.errors import SmallThinkerError, one_line

_BEFORE_COMMANDS = ("-h", "--help", "--version")
DEBUG_VARIABLE = "SMALLTHINKER_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for anything wrong with input or system, 70 for a fault of this
    program, 130 for Ctrl-C. SIGTERM and SIGHUP raise SystemExit with 143 and 129, once a command has cleaned up."""
    with terminal.standard_streams():
        try:
            _spare_threads()
            return _run(argv)
        except terminal.OutputError as e:
            terminal.drop_output()
            if e.errno == errno.EPIPE:  # `smallthinker run ... | head`: the reader has what it wanted
                return 0
            return _tell("smallthinker", EXIT_USAGE, f"standard output: cannot be written: {e.strerror}")


def _run(argv: Sequence[str] | None) -> int:
    name, in_options = "smallthinker", str
    try:
        parser = _parser()
        words = sys.argv[1:] if argv is None else list(argv)
        if words[:1] and words[0].startswith("-") and words[0] not in _BEFORE_COMMANDS:
            parser.error(
                f"{words[0].partition('=')[0]}: expected a command first, as in smallthinker run {words[0]} ..."
            )
        args, unknown = parser.parse_known_args(words)
        if (
            unknown
            and isinstance(getattr(args, "prompt", None), list)
            and not any(word[:1] == "-" != word for word in unknown)
        ):
            args.prompt += [text(word) for word in unknown]  # argparse takes words up to the first option only
        elif unknown:
            getattr(args, "parser", parser).refuse(unknown)
        if args.command is None:
            parser.print_help(sys.stderr)
            return EXIT_USAGE
        name, in_options = args.parser.prog, args.parser.options_in
        with _signals_unwind():
            code: int = args.handler(args)
        sys.stdout.flush()
        return code
    except SystemExit:  # of --help and of wrong arguments
        sys.stdout.flush()
        raise
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except terminal.OutputError:
        raise
    except Exception as e:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            traceback.print_exc()
        code, said = _fault(e)
        return _tell(name, code, in_options(said) if isinstance(e, SmallThinkerError) else said)


def _spare_threads() -> None:
    """OpenBLAS, which numpy loads, starts a thread a core, and ends the process where it can't."""
    if sys.platform == "win32":
        return
    import resource

    is_short = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if not is_short:  # else a thread's own stack and heap might be what is lacking later
        try:
            threading.Thread(target=int).start()
        except RuntimeError:
            is_short = True
    if is_short:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _tell(name: str, code: int, message: object) -> int:
    print(f"{name}: error: {one_line(message)}", file=sys.stderr)
    return code


def _fault(error: Exception) -> tuple[int, str]:
    """The exit code and what is said of an error."""
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__  # numpy's own words about it are a page of advice
    said = str(error) or type(error).__name__
    if isinstance(error, SmallThinkerError):
        return EXIT_USAGE, said
    if _lacks_room(error):
        return EXIT_USAGE, (
            f"no memory or threads left: {said}; give --memory less, end other programs, or raise the limits of this "
            "shell (`ulimit -a` shows them)"
        )
    if isinstance(error, OSError) and error.strerror is not None:  # the system's word, about a path or about nothing
        return EXIT_USAGE, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ImportError):
        if said.startswith("SMALLTHINKER_ISA"):  # the user's own setting, found wrong when the kernels load
            return EXIT_USAGE, said
        return EXIT_USAGE, f"cannot load {error.name or 'a part'}: {said}; install smallthinker again, for this Python"
    return EXIT_INTERNAL, (
        f"internal error: {type(error).__name__}: {one_line(said, 400)}; this is a fault of smallthinker: please "
        f"report this line, the command, its traceback (again with {DEBUG_VARIABLE}=1) and what `smallthinker doctor "
        "--report` prints"
    )


def _lacks_room(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN)):
        return True
    signs = ("can't start new thread", os.strerror(errno.EAGAIN), "failed to map segment", "cannot allocate memory")
    return isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in signs)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal end a command by way of its clean-up, as Ctrl-C does: 128 + their number.

    SystemExit, not KeyboardInterrupt, which a conversation answers with a hint. Only the first one counts: `timeout`
    sends it to the process and to its group. One that is ignored (nohup) stays so; `serve` puts its own in their place.
    After Ctrl-C, a second one ends the process as it is: the clean-up may wait for a disk that never answers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> NoReturn:
        for each in previous:
            signal.signal(each, lambda *_: None)
        raise SystemExit(128 + number)

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
    try:
        for number in previous:
            signal.signal(number, end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser() -> Parser:
    parser = Parser(
        prog="smallthinker",
        description="Runs sparse Mixture-of-Experts language models that are larger than memory.",
        epilog='example: smallthinker run "Once upon a time". Exit codes: 0 done; 2 something is wrong with an '
        "argument, a file or the system; 70 a fault of smallthinker; 129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM.",
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
