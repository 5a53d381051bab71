"""`smallthinker bench`: a store over budgets, disks and prompt lengths; comparing and submitting what was found."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smallthinker.commands.models import DEFAULT, KINDS, add_model_option, find_model
from smallthinker.commands.options import (
    EXIT_INTERRUPTED,
    Commands,
    add_command,
    add_kv,
    add_running,
    engine_options,
    read_text,
    renamed,
    whole,
)
from smallthinker.commands.output import add_output, check_plot, print_found, save_plot
from smallthinker.errors import one_line, shown
from smallthinker.terminal import bar_stream

if TYPE_CHECKING:
    from smallthinker.benchmark.compare import BenchComparison
    from smallthinker.charts.style import Chart

_USAGE = """smallthinker bench [MODEL] [options]
       smallthinker bench compare A B [--json | --csv] [--plot FILE]
       smallthinker bench --submit FILE"""


class _Defaults(NamedTuple):
    prompt: int
    tokens: int
    repeats: int


_DEFAULTS, _QUICK = _Defaults(128, 64, 3), _Defaults(64, 32, 3)


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        handle,
        "measure decode, prefill and time to first token over budgets, disks and prompt lengths, and write a report",
        "smallthinker bench ./4b-store --memory 512MiB 1GiB --storage raw emmc --prompt 128 1024 -o ./4b-results",
    )
    parser.usage = _USAGE
    add = parser.add_argument
    add("what", metavar="MODEL", nargs="*", help=f"{KINDS} ({DEFAULT}); or: compare A B")
    add_model_option(parser)
    add("--submit", metavar="FILE", type=Path, help="check a results file and print its row for the project's table")
    add_output(parser, rows="a line for each cell and start", plot="with compare: A beside B")
    add = parser.add_argument_group("what to measure").add_argument
    add("--memory", metavar="SIZE", nargs="+", help="budgets (default: three, from the floor to everything)")
    add(
        "--storage",
        metavar="PROFILE",
        nargs="+",
        default=["raw"],
        help="raw for the real disk, nvme, sata-ssd, ufs, emmc, sd-card, hdd, or a profile's file (default: raw)",
    )
    add("--prompt", metavar="N", nargs="+", type=whole, help="tokens of the prompts (default: 128)")
    add("--max-tokens", metavar="N", type=whole, help="tokens of an answer (default: 64)")
    for old, new in (("--profile", "--storage"), ("--context", "--prompt"), ("--tokens", "--max-tokens")):
        renamed(parser, old, new)
    add("--repeats", metavar="N", type=whole, help="processes for each cell, in turns (default: 3)")
    add("--quick", action="store_true", help="fewer tokens: the demo model in under a minute")
    add = parser.add_argument_group("tokens").add_argument
    add("--text", metavar="FILE", type=Path, help="tokens of this text, UTF-8 (default: random ids)")
    add("--seed", metavar="N", type=whole, default=0, help="of random ids (default: 0)")
    add(
        "--greedy",
        action="store_true",
        help="decode what the model finds likeliest (default: the source's next tokens, since a small or random model "
        "soon repeats itself, and its experts with it)",
    )
    how = parser.add_argument_group("how")
    add_running(how)
    add = how.add_argument
    add_kv(how)
    add("--limit", action="store_true", help="a memory cgroup of the budget's size around each run; needs root")
    add("--real-throttle", action="store_true", help="the kernel slows the disk down, not the engine; needs root")
    add = parser.add_argument_group("results").add_argument
    add(
        "-o",
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for results.jsonl, results.md, plots and report.html; what it holds already isn't measured again "
        "(default: bench-MODEL)",
    )
    add(
        "--force",
        action="store_true",
        help="measure again what the folder holds already, and replace files in it that aren't a benchmark's",
    )


def handle(args: argparse.Namespace) -> int:
    from smallthinker.errors import RequestError

    if args.submit is not None:
        if args.csv or args.plot is not None:
            raise RequestError("--submit: prints a row of the project's table; leave --csv and --plot out")
        if args.what:
            raise RequestError(f"--submit: takes one results file and nothing else, found also {args.what[0]!r}")
        return _submit(args)
    if args.what[:1] == ["compare"]:
        if len(args.what) != 3:
            raise RequestError(f"compare: expected two results files or folders, found {len(args.what) - 1}")
        return _compare(args, Path(args.what[1]), Path(args.what[2]))
    if args.plot is not None:
        raise RequestError("--plot: expected with compare; `bench` draws its charts into --out")
    words = [*args.what, *([] if args.model is None else [args.model])]
    if len(words) > 1:
        raise RequestError(f"MODEL: expected one model, or: compare A B; found {', '.join(map(shown, words))}")
    return _measure(args, find_model(words[0] if words else None))


def _notice(text: str) -> None:
    print(f"smallthinker bench: {text}", file=sys.stderr)


def _measure(args: argparse.Namespace, store: Path) -> int:
    from smallthinker.benchmark.request import BenchRequest, plan
    from smallthinker.benchmark.results import begin, cell_of
    from smallthinker.benchmark.views.all_views import check_folder, write_views

    defaults = _QUICK if args.quick else _DEFAULTS
    request = BenchRequest(
        store=store,
        memory=args.memory or [],
        profiles=args.storage,
        prompts=args.prompt or [defaults.prompt],
        tokens=defaults.tokens if args.max_tokens is None else args.max_tokens,
        repeats=defaults.repeats if args.repeats is None else args.repeats,
        seed=args.seed,
        text=None if args.text is None else read_text(args.text),
        greedy=args.greedy,
        options=engine_options(args, memory=None, storage=None),
        limit=args.limit,
        throttle="kernel" if args.real_throttle else "emulated",
    )
    series, environment = plan(request)
    folder = args.out or Path(f"bench-{environment['model']['name']}")
    inputs = [*map(Path, args.storage), *([] if args.text is None else [args.text])]
    check_folder(folder, request.prompts, request.store, inputs, force=args.force)
    with begin(folder, environment, force=args.force, notice=_notice) as results:
        check_folder(folder, results.prompts(), request.store, inputs, force=args.force)
        if args.force:
            asked = set(series.cells)
            results.keep(lambda row: row["kind"] == "routing" or cell_of(row) not in asked)
        try:
            with _Bar(series.steps()) as watch:
                series.run(results, watch)
        except KeyboardInterrupt:
            _notice(f"interrupted; the same command goes on from {results.path}")
            return EXIT_INTERRUPTED
        views = write_views(results, _notice)
    for note in views.notes if args.json or args.csv else ():  # the text has them
        _notice(note)

    def facts() -> dict[str, Any]:
        cells = [summary.to_dict() for summary in views.summaries]
        found: dict[str, Any] = {
            "environment": results.environment,
            "cells": cells,
            "failed": results.of_kind("failed"),
        }
        return found | {"files": [str(path) for path in views.files]}

    print_found(
        args,
        lambda: "\n".join([views.markdown, *(str(path) for path in views.files)]),
        facts,
        lambda: [summary.to_dict() for summary in views.summaries],
    )
    return 0


def _compare(args: argparse.Namespace, a: Path, b: Path) -> int:
    from smallthinker.benchmark.compare import compare, comparison_text
    from smallthinker.benchmark.results import FILE, read_results
    from smallthinker.errors import ResultsError

    check_plot(args.plot, [path / FILE if path.is_dir() else path for path in (a, b)])
    found = compare(read_results(a, _notice), read_results(b, _notice))
    if not found.changes:
        raise ResultsError(
            f"{a} and {b}: nothing to compare: no budget, disk and prompt length was measured in both; run bench with "
            "the same ones"
        )
    for warning in found.warnings:
        _notice(f"warning: {warning}")
    save_plot(args.plot, lambda: _comparison_chart(found))
    print_found(
        args, lambda: comparison_text(found), found.to_dict, lambda: [change.to_dict() for change in found.changes]
    )
    return 0


def _comparison_chart(found: BenchComparison) -> Chart:
    from smallthinker.benchmark.views.comparison_chart import comparison_chart

    return comparison_chart(found)


def _submit(args: argparse.Namespace) -> int:
    from smallthinker.benchmark.submission import header, read_submission, row

    found = row(read_submission(args.submit))
    if args.json:
        print(json.dumps({"valid": True, "row": found}))
        return 0
    print(f"{header()}\n{found}")
    _notice(
        "the file is valid; to publish it, put it into docs/results/ of the project under a name of its own, run "
        "docs/results/build.py and open a pull request"
    )
    return 0


class _Bar:
    """Runs done and to do on stderr, with the time that is left; nothing where stderr is not a terminal."""

    def __init__(self, steps: int) -> None:
        from tqdm import tqdm

        self._steps = steps
        self._bar = tqdm(total=steps, desc="measuring", unit="run", disable=None, dynamic_ncols=True, file=bar_stream())

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def started(self, what: str) -> None:
        self._bar.set_postfix_str(one_line(what))

    def ended(self, measured: bool) -> None:
        """What was there already took no time: it must not make the rest look quick."""
        if measured:
            self._bar.update()
        else:
            self._steps -= 1
            self._bar.total = self._steps
            self._bar.refresh()

    def notice(self, text: str) -> None:
        self._bar.clear()
        _notice(text)
