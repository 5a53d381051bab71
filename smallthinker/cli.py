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
    synth.add_argument(
        "--skew",
        type=float,
        default=0.0,
        metavar="X",
        help="constant preference for some experts, relative to what tokens make of them; 1.3 is about that of the "
        "published models (default: 0, all about equally used)",
    )
    synth.add_argument("--force", action="store_true", help="replace an existing store, once the new one is whole")
    _add_compression(synth)

    trace = _command(
        commands,
        "trace",
        _trace,
        "record which experts the tokens of a text use, to choose a cache with cache-sim",
        "smallthinker trace ./4b-store --text book.txt -o book.trace --tokens 2000",
    )
    trace.add_argument("store", metavar="STORE", nargs="?", help="a store (default: the bundled demo model)")
    trace.add_argument("--text", metavar="FILE", type=Path, required=True, help="text to run through the model, UTF-8")
    trace.add_argument("-o", "--out", metavar="TRACE", type=Path, required=True, help="file to write")
    trace.add_argument("--tokens", type=int, metavar="N", help="only the first N tokens (default: all)")
    trace.add_argument("--memory", metavar="SIZE", help="ceiling for the whole process, e.g. 1GiB")
    trace.add_argument("--force", action="store_true", help="replace an existing file")
    trace.add_argument("--json", action="store_true", help="print one JSON object")

    calibrate = _command(
        commands,
        "calibrate",
        _calibrate,
        "learn from a text which experts are worth reading early; needs smallthinker[torch]",
        "smallthinker calibrate ./4b-store --text book.txt",
    )
    calibrate.add_argument("store", metavar="STORE", type=Path, help="a store; the predictor is put into its folder")
    calibrate.add_argument(
        "--text", metavar="FILE", type=Path, required=True, help="text like what the model will write, UTF-8"
    )
    calibrate.add_argument("--tokens", type=int, metavar="N", help="only the first N tokens (default: 8192)")
    calibrate.add_argument("--memory", metavar="SIZE", help="ceiling for running the model, e.g. 1GiB")
    calibrate.add_argument("--force", action="store_true", help="replace an existing predictor")
    calibrate.add_argument("--json", action="store_true", help="print one JSON object")

    cache_sim = _command(
        commands,
        "cache-sim",
        _cache_sim,
        "replay a trace with every eviction policy, and with the optimum that knows the future",
        "smallthinker cache-sim book.trace --memory 512MiB 1GiB",
    )
    cache_sim.add_argument("trace", metavar="TRACE", type=Path, help="a file that `smallthinker trace` wrote")
    sizes = cache_sim.add_mutually_exclusive_group()
    sizes.add_argument("--memory", metavar="SIZE", nargs="+", help="memory for experts alone, e.g. 512MiB 1GiB")
    sizes.add_argument(
        "--slots", metavar="N", nargs="+", type=int, help="experts in memory (default: 10, 25, 34, 50, 75 %% of all)"
    )
    cache_sim.add_argument("--json", action="store_true", help="print one JSON object")
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
        "--reader",
        choices=["auto", "direct", "uring", "mmap", "buffered"],
        default="auto",
        help="how experts are read (default: auto, as a probe of the disk found best)",
    )
    group.add_argument("--no-prefetch", action="store_true", help="read experts only once attention is done")
    group.add_argument(
        "--no-look-ahead", action="store_true", help="read only what is certain, not what later layers will likely want"
    )
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
        look_ahead=not args.no_look_ahead,
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
        if args.verbose and stats.least_slots < stats.slots:
            print(f"the machine ran short of memory: only {stats.least_slots} experts could stay", file=sys.stderr)
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
            skew=args.skew,
            compress=args.compress,
        )
    if args.quant == "none":
        print(f"{args.store}: a bf16 checkpoint; its routing is not measured, that needs a store")
        return 0
    print(_summary(args.store))
    from smallthinker.tracing import random_usage, usage_text

    try:
        with _ProgressBar("measuring", "token") as progress:
            tokens, use = random_usage(args.store, args.seed, progress)
    except SmallThinkerError as e:  # the store is whole; this machine may be too small to run it
        print(f"routing not measured: {e}")
    else:
        print(f"routing of {tokens} random tokens: {usage_text(use)}")
    return 0


def _trace(args: argparse.Namespace) -> int:
    from smallthinker.engine import Engine
    from smallthinker.errors import RequestError, StoreWriteError
    from smallthinker.llm import DEMO_STORE
    from smallthinker.router.trace import save_trace, usage
    from smallthinker.tracing import record, split, usage_text

    if args.tokens is not None and args.tokens < 1:
        raise RequestError(f"--tokens: expected at least 1, found {args.tokens}")
    if args.out.exists() and not args.force:
        raise StoreWriteError(f"{args.out}: exists already; give another name, or --force to replace it")
    text = _read_text(args.text)
    with _ProgressBar("tracing", "token") as progress, Engine(args.store or DEMO_STORE, memory=args.memory) as engine:
        tokens = engine.tokenizer.encode(text)[: args.tokens]
        trace = record(engine, split(tokens, engine.plan.context), progress)
    save_trace(trace, args.out)
    use = usage(trace.ids, trace.starts, trace.experts)
    facts: dict[str, Any] = {
        "tokens": trace.tokens,
        "sequences": len(trace.starts),
        "layers": trace.layers,
        "experts": trace.experts,
    }
    facts |= {"experts_per_token": trace.experts_per_token, "record_bytes": trace.record_bytes, "model": trace.model}
    if args.json:
        print(json.dumps(facts | {"file": str(args.out), "file_bytes": args.out.stat().st_size} | use._asdict()))
    else:
        print(f"{args.out}: {trace.tokens} tokens in {len(trace.starts)} sequences, {args.out.stat().st_size:,} bytes")
        print(usage_text(use))
    return 0


def _read_text(path: Path) -> str:
    from smallthinker.errors import RequestError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else f"byte {e.start} is no UTF-8"
        raise RequestError(f"{path}: expected a text file in UTF-8: {why}; give another --text") from None


def _calibrate(args: argparse.Namespace) -> int:
    from smallthinker.calibration import calibrate

    text = _read_text(args.text)
    with _ProgressBar("recording", "token") as recording, _ProgressBar("learning", "pair") as training:
        result = calibrate(
            args.store,
            text,
            tokens=args.tokens,
            memory=args.memory,
            force=args.force,
            recording=recording,
            training=training,
        )
    print(json.dumps(result.to_dict()) if args.json else result.text())
    return 0


def _cache_sim(args: argparse.Namespace) -> int:
    from smallthinker.cache.policies import POLICIES
    from smallthinker.cache.replay import replay
    from smallthinker.errors import RequestError
    from smallthinker.inspection import replay_facts, replay_text
    from smallthinker.memory_plan import parse_size
    from smallthinker.router.trace import load_trace

    trace = load_trace(args.trace)
    most, k = trace.layers * trace.experts, trace.experts_per_token
    slots = args.slots or [parse_size(size) // trace.record_bytes for size in args.memory or ()]
    slots = slots or [max(most * percent // 100, k) for percent in (10, 25, 34, 50, 75)]
    few = next((n for n in slots if n < k), None)
    if few is not None:
        raise RequestError(
            f"slots: expected at least {k}, the experts of one token in one layer, found {few}; "
            f"give at least {k * trace.record_bytes} bytes"
        )
    replays, done = [], 0
    with _ProgressBar("replaying", "run") as progress:

        def count() -> None:
            nonlocal done
            done += 1
            progress(done, len(slots) * (len(POLICIES) + 1), "runs")

        for n in slots:
            replays.append(replay(trace.ids, trace.probs, n, count))
    print(json.dumps(replay_facts(trace, replays)) if args.json else replay_text(trace, replays))
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
    """A bar on stderr for work that takes longer than two seconds; nothing where stderr is not a terminal."""

    def __init__(self, what: str, unit: str = "B") -> None:
        self._what, self._unit = what, unit

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        scaled = self._unit == "B"
        self._bar = tqdm(desc=self._what, unit=self._unit, unit_scale=scaled, unit_divisor=1024, disable=None, delay=2)

        def progress(done: int, total: int, what: str) -> None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

        return progress

    def __exit__(self, *_: object) -> None:
        self._bar.close()
