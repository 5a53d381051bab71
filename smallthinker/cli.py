"""The command line: arguments in, text out. The only place that prints, reads the environment's streams or exits.

Each command imports what it needs when it runs, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smallthinker.errors import SmallThinkerError

if TYPE_CHECKING:
    from smallthinker.expert_store.progress import Progress
    from smallthinker.llm import LLM, Options

EXIT_USAGE = 2
COMPRESSION_LEVEL = 3  # of quantised weights, higher ones make nothing smaller; see docs/benchmarks.md
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Parser(argparse.ArgumentParser):
    """Errors in one line; argparse's own come after a paragraph of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for anything wrong with input or system, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smallthinker",
        description="Runs sparse Mixture-of-Experts language models that are larger than memory.",
        epilog='example: smallthinker run "Once upon a time"',
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    run = _command(
        commands,
        "run",
        _run,
        "write text that continues a prompt",
        'smallthinker run -m ./4b-store --memory 1GiB --max-tokens 64 "The sea was"',
    )
    run.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from standard input")
    _add_model_options(run)
    _add_sampling_options(run)
    run.add_argument(
        "--stats", choices=["line", "json"], default="line", help="figures on the last line of stderr (default: line)"
    )

    chat = _command(
        commands, "chat", _chat, "talk with a model", "smallthinker chat -m ./4b-store --memory 1GiB --temperature 0.7"
    )
    chat.add_argument("--system", metavar="TEXT", help="a system message that opens the conversation")
    _add_model_options(chat)
    _add_sampling_options(chat)

    convert = _command(
        commands,
        "convert",
        _convert,
        "make a store from a Hugging Face checkpoint",
        "smallthinker convert ./SmallThinker-4BA0.6B-Instruct ./4b-store --quant q4_0",
    )
    convert.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="folder with config.json, *.safetensors, tokenizer.json"
    )
    convert.add_argument("store", metavar="STORE", type=Path, help="folder to write")
    convert.add_argument(
        "--quant", choices=["q4_0", "q8_0", "f16"], default="q4_0", help="weight format (default: q4_0)"
    )
    convert.add_argument("--force", action="store_true", help="replace an existing store, once the new one is whole")
    _add_compression(convert)

    inspect = _command(
        commands, "inspect", _inspect, "show what a store holds", "smallthinker inspect ./4b-store --verify"
    )
    inspect.add_argument(
        "store", metavar="STORE", type=Path, nargs="?", help="a store (default: the bundled demo model)"
    )
    inspect.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = _command(
        commands, "doctor", _doctor, "say what this machine and this build can do", "smallthinker doctor --json"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    synth = _command(
        commands,
        "synth",
        _synth,
        "make a random store of a model's true shapes, to measure without its weights",
        "smallthinker synth 4b ./4b-random --quant q4_0",
    )
    synth.add_argument("shape", metavar="{4b,21b,CONFIG.json}", help="a published shape, or a config.json")
    synth.add_argument("store", metavar="OUT", type=Path, help="folder to write")
    synth.add_argument(
        "--quant",
        choices=["q4_0", "q8_0", "none"],
        default="q4_0",
        help="weight format; none writes a bf16 Hugging Face checkpoint (default: q4_0)",
    )
    synth.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same bytes (default: 0)"
    )
    synth.add_argument("--force", action="store_true", help="replace an existing store, once the new one is whole")
    _add_compression(synth)
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, handler: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_compression(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compress",
        type=int,
        nargs="?",
        const=COMPRESSION_LEVEL,
        metavar="LEVEL",
        help="compress experts with zstd, level 1 to 19: less to read, more to compute "
        f"(default: off; without a number {COMPRESSION_LEVEL})",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="STORE", help="a store (default: the bundled demo model)")
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="ceiling for the whole process, e.g. 1GiB (default: what is free, less a margin)",
    )
    group.add_argument(
        "--context", type=int, metavar="N", help="tokens of prompt and answer together (default: at most 4096)"
    )
    group.add_argument(
        "--kv",
        choices=["f16", "q8"],
        default="f16",
        help="numbers of the KV cache; q8 halves its memory and changes outputs slightly (default: f16)",
    )
    group.add_argument("--threads", type=int, metavar="N", help="arithmetic threads (default: physical cores)")
    group.add_argument(
        "--reader", choices=["auto", "mmap", "direct"], default="auto", help="how experts are read (default: auto)"
    )
    group.add_argument("--no-prefetch", action="store_true", help="read experts only once attention is done")
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
    group.add_argument("--verbose", action="store_true", help="print the memory plan to stderr")
    group.add_argument("--profile", action="store_true", help="print where a token's time went to stderr")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    from smallthinker.sampling import SamplingParams as Defaults

    group = parser.add_argument_group("generation")

    def add(flag: str, kind: type, metavar: str, default: object, text: str) -> None:
        group.add_argument(flag, type=kind, metavar=metavar, default=default, help=text)

    add("--max-tokens", int, "N", None, "longest answer (default: 256, or what the context leaves)")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-text token")
    add("--temperature", float, "T", Defaults.temperature, f"0 is greedy (default: {Defaults.temperature})")
    add("--top-k", int, "K", Defaults.top_k, f"keep the K likeliest tokens; 0 is off (default: {Defaults.top_k})")
    add("--top-p", float, "P", Defaults.top_p, f"keep tokens up to this mass; 1 is off (default: {Defaults.top_p})")
    add(
        "--min-p",
        float,
        "P",
        Defaults.min_p,
        f"keep tokens this likely, relative to the best (default: {Defaults.min_p})",
    )
    add("--repeat-penalty", float, "X", Defaults.repeat_penalty, "weaken recent tokens; 1 is off (default: 1)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    add("--seed", int, "N", None, "the same seed gives the same text (default: a new one each time)")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"smallthinker {version('smallthinker')}")
        parser.exit(0)


def _load(args: argparse.Namespace) -> LLM:
    from smallthinker.llm import LLM

    llm = LLM(
        args.model,
        memory=args.memory,
        context=args.context,
        kv=args.kv,
        threads=args.threads,
        reader=args.reader,
        prefetch=not args.no_prefetch,
        lossy_head=args.lossy_head,
        lossy_threshold=args.lossy_threshold,
    )
    if args.verbose:
        print(llm.plan.table(), file=sys.stderr)
    return llm


def _generation_options(args: argparse.Namespace) -> Options:
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


def _run(args: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    from smallthinker.chat import interrupts_cancel

    with _load(args) as llm, llm.stream(prompt, **_generation_options(args)) as stream, interrupts_cancel(llm):
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
        assert stream.completion is not None
        stats = stream.completion.stats
        profile = stream.completion.profile
        if args.profile:
            print(profile.table(), file=sys.stderr)
        figures = stats.to_dict() | ({"profile": profile.to_dict()} if args.profile else {})
        print(json.dumps(figures) if args.stats == "json" else stats.line(), file=sys.stderr)
        return EXIT_INTERRUPTED if stream.completion.finish_reason == "cancelled" else 0


def _chat(args: argparse.Namespace) -> int:
    from smallthinker.chat import Chat

    with _load(args) as llm:
        return Chat(llm, _generation_options(args), args.system, profile=args.profile).run()


def _convert(args: argparse.Namespace) -> int:
    from smallthinker.expert_store.convert import convert

    with _ProgressBar("converting") as progress:
        convert(args.checkpoint, args.store, args.quant, force=args.force, progress=progress, compress=args.compress)
    print(_summary(args.store))
    return 0


def _synth(args: argparse.Namespace) -> int:
    from smallthinker.expert_store.synth import synth

    with _ProgressBar("writing") as progress:
        synth(
            args.shape,
            args.store,
            args.quant,
            seed=args.seed,
            force=args.force,
            progress=progress,
            compress=args.compress,
        )
    print(f"{args.store}: a bf16 checkpoint" if args.quant == "none" else _summary(args.store))
    return 0


def _summary(path: Path) -> str:
    from smallthinker.expert_store.store import Store

    with Store.open(path) as store:
        total = store.dense_file.file_bytes + store.experts_file.file_bytes
        return f"{path}: {store.quant}, {total / 2**20:,.0f} MiB, {store.num_experts} experts"


def _inspect(args: argparse.Namespace) -> int:
    from smallthinker.expert_store.inspect import describe
    from smallthinker.expert_store.store import Store
    from smallthinker.inspection import inspection_text
    from smallthinker.llm import DEMO_STORE

    with Store.open(args.store or DEMO_STORE) as store:
        if args.verify:
            with _ProgressBar("verifying") as progress:
                store.verify(progress)
        facts = describe(store)
        if args.verify:
            facts["checksums"] = "verified"
        print(json.dumps(facts) if args.json else inspection_text(facts))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from smallthinker.doctor import diagnose, diagnosis_text

    facts = diagnose()
    print(json.dumps(facts) if args.json else diagnosis_text(facts))
    return EXIT_USAGE if facts["problems"] else 0


class _ProgressBar:
    """A bar on stderr for work that is counted in bytes; nothing where stderr is not a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self._bar = tqdm(desc=self._what, unit="B", unit_scale=True, unit_divisor=1024, disable=None, delay=0.5)

        def progress(done_bytes: int, total_bytes: int, what: str) -> None:
            self._bar.total = total_bytes
            self._bar.update(done_bytes - self._bar.n)

        return progress

    def __exit__(self, *_: object) -> None:
        self._bar.close()
