"""What several commands share: groups of options, the model that they describe, texts, progress bars, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from operator import ne
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from smallthinker import terminal
from smallthinker.errors import TokenizerError, one_line, shown

if TYPE_CHECKING:
    from smallthinker.expert_store.progress import Progress
    from smallthinker.llm import LLM, ChatOptions, GenerationOptions
    from smallthinker.options import EngineOptions

EXIT_USAGE = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
MAX_DIGITS = 20  # those of 2**64
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MOST_NAMED = 12  # choices in a message
MOST_TEXT_BYTES = 1 << 30  # the tokens of more would need tens of GiB
WEIGHT_FORMATS = ("q4", "q4_0", "q4_k", "q4_k_s", "q4_k_m", "q6_k", "q8_0", "bf16", "f16")
SHAPE_FORMATS = (*WEIGHT_FORMATS, "mxfp4")  # of models without weights: it can be run, but not made of numbers
COMPRESSION_LEVEL = 3  # of quantised weights, higher ones make nothing smaller; see docs/benchmarks.md

# How messages of the library name a parameter where they advise one: `context`, `memory=1GiB`.
_PARAMETER = re.compile(r"`(?P<name>[a-z]+(?:_[a-z]+)*)(?:=(?P<value>[^`\s]+))?`")


class Parser(argparse.ArgumentParser):
    """Errors in one line; argparse's own come after a paragraph of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.color = False  # Python 3.14's help has some, which `terminal` would show

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse, in fewer words: what was meant, or of a few choices all."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        close = _closest(str(value), known)
        if len(known) > MOST_NAMED or isinstance(action, argparse._SubParsersAction):
            what = (action.metavar or action.dest) if isinstance(action.metavar, str) else action.dest
            self.error(f"{shown(value)}: no such {what.lower()}{close}")
        raise argparse.ArgumentError(action, f"expected {', '.join(known[:-1])} or {known[-1]}, found {shown(value)}")

    def options_in(self, message: str) -> str:
        """A message of the library, with this command's options where that has parameters: "`max_tokens`" and a
        leading "max_tokens: " become --max-tokens, "`memory=1GiB`" --memory 1GiB."""
        options = {action.dest: action.option_strings[-1] for action in self._actions
                   if action.option_strings and action.help != argparse.SUPPRESS}  # fmt: skip

        def named(found: re.Match[str]) -> str:
            name, value = found["name"], found["value"]
            known = options.get(name)
            if known is None:
                return name if value is None else f"{name}={value}"
            return known if value is None else f"{known} {value}"

        first = re.match(r"([a-z]+(?:_[a-z]+)*): ", message)
        if first is not None and first[1] in options:
            message = f"{options[first[1]]}{message[first.end(1) :]}"
        return _PARAMETER.sub(named, message)

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """What nobody takes: the first of it, with the option that may have been meant."""
        first = next((argument for argument in arguments if argument.startswith("-")), None)
        if first is None:
            self.error(f"{shown(arguments[0])}: expected no more arguments")
        name = first.partition("=")[0]
        known = [option for action in self._actions if action.help != argparse.SUPPRESS
                 for option in action.option_strings]  # fmt: skip
        self.error(f"{name}: no such option{_closest(name, known)}")


def _closest(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known))  # rum: rm before run
    exchanged = [one for one in close if len(one) == len(word) and sum(map(ne, one, word)) == 1]
    meant = (exchanged or close)[:1]
    return f"; did you mean {meant[0]}?" if meant else ""


def text(value: str) -> str:
    """An argument that is text: UTF-8 even where the locale knows only ASCII."""
    try:
        return os.fsencode(value).decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in value) else value
    except UnicodeDecodeError as e:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, byte {e.start} is none: {shown(value)}") from None
    except UnicodeEncodeError as e:
        raise argparse.ArgumentTypeError(f"expected text, character {e.start} is none: {shown(value)}") from None


def whole(value: str) -> int:
    """An argument that is a whole number; none has a use for more digits than these."""
    if len(value) <= MAX_DIGITS:
        with contextlib.suppress(ValueError):
            return int(value)
    raise argparse.ArgumentTypeError(f"expected a whole number of at most {MAX_DIGITS} digits, found {shown(value)}")


class _Renamed(argparse.Action):
    """An option that has another name now, which is its `const`."""

    def __call__(self, *_: object) -> None:
        raise argparse.ArgumentError(self, f"is now {self.const}")


def renamed(group: Group, old: str, new: str) -> None:
    """Scripts that still say `old` are told."""
    group.add_argument(old, action=_Renamed, nargs="?", const=new, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Group: TypeAlias = "argparse._ArgumentGroup | argparse.ArgumentParser"


def add_command(
    commands: Commands, name: str, handler: Any, summary: str, example: str, aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
        aliases=aliases,
    )
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def add_compression(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compress",
        type=whole,
        nargs="?",
        const=COMPRESSION_LEVEL,
        metavar="LEVEL",
        help="compress experts with zstd, level 1 to 19: less to read, more to compute "
        f"(default: off; without a number {COMPRESSION_LEVEL})",
    )


def add_model_options(parser: argparse.ArgumentParser, context: str = "at most 4096") -> None:
    """context: what it is by default, for the help."""
    from smallthinker.expert_store.device.storage_profile import BUNDLED

    group = parser.add_argument_group("model")
    add_memory(group)
    group.add_argument(
        "--context", type=whole, metavar="N", help=f"tokens of prompt and answer together (default: {context})"
    )
    add_running(group)
    group.add_argument(
        "--storage",
        metavar="PROFILE",
        help=f"emulate a slower disk: {', '.join(BUNDLED)}, or a file that `smallthinker probe` wrote",
    )
    group.add_argument(
        "--no-prefetch", dest="prefetch", action="store_false", help="read experts only once attention is done"
    )
    group.add_argument(
        "--no-look-ahead",
        dest="look_ahead",
        action="store_false",
        help="read only what is certain, not what the next layer will likely want",
    )
    add_speculation(group)
    add_switches(group)
    group.add_argument("--verbose", action="store_true", help="print the memory plan to stderr")


def add_timings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timings", action="store_true", help="print where a token's time went to stderr")
    renamed(parser, "--profile", "--timings")


def add_quiet(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help=f"no progress{more} on stderr, only what is wrong")


def add_memory(group: Group) -> None:
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="ceiling for the whole process, e.g. 1GiB (default: what is free, less a margin)",
    )


def add_running(group: Group) -> None:
    """How an engine runs; no output depends on it."""
    group.add_argument("--threads", type=whole, metavar="N", help="arithmetic threads (default: physical cores)")
    group.add_argument(
        "--reader",
        choices=["auto", "direct", "mmap", "buffered"],
        default="auto",
        help="how experts are read (default: auto, as a probe of the disk found best)",
    )
    group.add_argument(
        "--verify",
        choices=["first", "always", "never"],
        default="first",
        help="compare what is read of a model with its checksums: the first time (default), always or never",
    )


def add_speculation(group: Group) -> None:
    group.add_argument(
        "--speculation",
        choices=["auto", "always", "off"],
        default="auto",
        help="guess tokens that repeat the text so far and verify several in a step; no text depends on it (default: "
        "auto, while it pays)",
    )
    group.add_argument(
        "--draft", metavar="MODEL", help="a smaller model with the same vocabulary that guesses, too, inside --memory"
    )


def add_switches(group: Group) -> None:
    """What changes outputs."""
    add_kv(group)
    group.add_argument(
        "--lossy-head",
        metavar="FILE",
        help="LOSSY: compute only logits that this predictor (a model_lm_head.pt) deems likely (default: off)",
    )
    group.add_argument(
        "--lossy-threshold",
        type=float,
        metavar="X",
        default=0.0,
        help="score above which the predictor has a logit computed; lower loses less (default: 0, as published)",
    )
    group.add_argument(
        "--lossy-experts", type=int, metavar="N", help="LOSSY: at most N experts of a token and layer (default: all)"
    )
    group.add_argument(
        "--lossy-prefer",
        type=float,
        metavar="X",
        default=0.0,
        help="LOSSY: choose experts in memory as if their scores were higher by X times the span of scores, e.g. 0.1 "
        "(default: 0, off)",
    )
    group.add_argument(
        "--lossy-skip",
        type=float,
        metavar="X",
        default=0.0,
        help="LOSSY: leave out an expert that isn't in memory if its weight is below X, e.g. 0.15 (default: 0, off)",
    )


def add_kv(group: Group) -> None:
    group.add_argument(
        "--kv",
        choices=["f16", "q8"],
        default="f16",
        help="numbers of the KV cache; q8 halves its memory and changes outputs slightly (default: f16)",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    from smallthinker.generation.sampling_params import SamplingParams as Defaults

    group = parser.add_argument_group("generation")

    def add(flag: str, kind: Callable[[str], object], metavar: str, default: object, text: str) -> None:
        group.add_argument(flag, type=kind, metavar=metavar, default=default, help=text)

    add("--max-tokens", whole, "N", None, "longest answer (default: 256, or what the context leaves)")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-text token")
    add("--temperature", float, "T", Defaults.temperature, f"0 is greedy (default: {Defaults.temperature})")
    add("--top-k", whole, "K", Defaults.top_k, f"keep the K likeliest tokens; 0 is off (default: {Defaults.top_k})")
    add("--top-p", float, "P", Defaults.top_p, f"keep tokens up to this mass; 1 is off (default: {Defaults.top_p})")
    add(
        "--min-p",
        float,
        "P",
        Defaults.min_p,
        f"keep tokens this likely, relative to the best (default: {Defaults.min_p})",
    )
    add("--repeat-penalty", float, "X", Defaults.repeat_penalty, "weaken recent tokens; 1 is off (default: 1)")
    group.add_argument(
        "--stop", action="append", type=text, default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    add("--seed", whole, "N", None, "the same seed gives the same text (default: a new one each time)")


THINKING = ("show", "hide", "off")


def add_chat_options(group: Group, default: str) -> None:
    """What a chat's template is asked for, and what becomes of thoughts."""
    group.add_argument("--system", type=text, metavar="TEXT", help="a system message that opens the conversation")
    group.add_argument(
        "--thinking",
        choices=THINKING,
        default="show",
        help=f"thoughts of models that have some: {default}, hide them, or ask for none (default: show)",
    )
    group.add_argument(
        "--reasoning-effort",
        type=text,
        metavar="LEVEL",
        help="how much to think, for templates that take it: low, medium, high",
    )


def chat_options(args: argparse.Namespace, llm: LLM) -> ChatOptions:
    """The template's values that the options ask for. Raises TokenizerError, RequestError."""
    from smallthinker.text.chat_prompt import switches

    thinking = False if args.thinking == "off" else None
    return {"template_values": switches(llm.tokenizer.chat_template, thinking, args.reasoning_effort)}


def add_cluster_options(group: Group) -> None:
    group.add_argument(
        "--cluster", type=text, metavar="ADDRESS",
        help="compute on a Ray cluster's nodes, or `local`, on one that is started here; needs smallthinker[ray]",
    )  # fmt: skip
    group.add_argument(
        "--node-dir", metavar="FOLDER",
        help="where each node keeps its own copy of MODEL, which they all see (default: a cache; of local, none)",
    )  # fmt: skip


def engine_options(args: argparse.Namespace, **more: Any) -> EngineOptions:
    """What a command's options say of the engine, each by the name that it has there; `more` goes before."""
    from smallthinker.options import EngineOptions

    given = {field.name: getattr(args, field.name, None) for field in fields(EngineOptions)}
    return EngineOptions(**{name: value for name, value in given.items() if value is not None} | more)


def generation_options(args: argparse.Namespace) -> GenerationOptions:
    return {
        "max_tokens": args.max_tokens,
        "ignore_eos": args.ignore_eos,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repeat_penalty": args.repeat_penalty,
        "stop": args.stop,
        "seed": args.seed,
    }


def check_out(out: Path, inputs: Iterable[Path], force: bool) -> None:
    """Before anything is computed: whether a command may write this file. inputs: what it reads; of a store, all of its
    files. Raises StoreWriteError."""
    from smallthinker.errors import StoreWriteError
    from smallthinker.expert_store.format import ALL_FILES
    from smallthinker.files import check_output

    try:
        read = [file for path in inputs for file in (path, *(path / name for name in ALL_FILES))]
        check_output(out, read, replace=force)
    except (OSError, ValueError) as e:  # ValueError: a zero byte in a path
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise StoreWriteError(f"{out}: cannot write: {why}") from None


def read_text(path: Path, option: str = "--text") -> str:
    from smallthinker.errors import RequestError
    from smallthinker.files import read_small

    try:
        return read_small(path, MOST_TEXT_BYTES).decode("utf-8")  # line ends as they are: they are tokens and bytes too
    except (OSError, ValueError) as e:
        why = f"byte {e.start} is no UTF-8" if isinstance(e, UnicodeDecodeError) else getattr(e, "strerror", None) or e
        raise RequestError(f"{path}: expected a text file in UTF-8: {why}; give another {option}") from None


def written(path: Path) -> dict[str, Any]:
    """What a store that was just written holds. Leaves its vocabulary packed beside it, as a first start would."""
    from smallthinker.expert_store.store import Store
    from smallthinker.text.tokenizer import Tokenizer

    with Store.open(path) as store:
        with contextlib.suppress(TokenizerError):  # whoever runs it is told
            Tokenizer(store.small_files, store.config.vocab_size, store)
        facts = {
            "store": str(path),
            "quant": store.quant,
            "bytes": store.dense_bytes + store.table_bytes + store.on_disk_bytes,
        }
        return facts | {"experts": store.num_experts, "records": store.config.records_are}


def written_text(facts: dict[str, Any]) -> str:
    size = facts["bytes"] / 2**20
    return f"{facts['store']}: {facts['quant']}, {size:,.0f} MiB, {facts['experts']} {facts['records']}"


class ProgressBar:
    """A bar on stderr for work that takes longer than two seconds; nothing where stderr is not a terminal. One at a
    time: a bar begins with its first progress and ends the one before. leave: the bar stays when it has ended. quiet:
    nothing is shown."""

    _shown: ProgressBar | None = None

    def __init__(self, what: str, unit: str = "B", *, leave: bool = True, quiet: bool = False) -> None:
        self._what, self._unit, self._leave, self._quiet = what, unit, leave, quiet
        self._bar: Any = None

    def __enter__(self) -> Progress:
        def progress(done: int, total: int, what: str) -> None:
            if self._bar is None:
                self._begin()
            self._bar.total = total
            self._bar.update(done - self._bar.n)

        return progress

    def _begin(self) -> None:
        from tqdm import tqdm

        if ProgressBar._shown is not None:
            ProgressBar._shown.__exit__()
        ProgressBar._shown = self
        self._bar = tqdm(
            desc=self._what,
            unit=self._unit,
            unit_scale=self._unit == "B",
            unit_divisor=1024,
            disable=True if self._quiet else None,
            delay=2,
            leave=self._leave,
            file=terminal.bar_stream(),
        )

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if ProgressBar._shown is self:
            ProgressBar._shown = None
