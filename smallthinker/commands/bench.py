"""`smallthinker bench`: a store over budgets, disks and prompt lengths, with a report; comparing and submitting results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.commands.options import EXIT_INTERRUPTED, Commands, add_command, read_text

if TYPE_CHECKING:
    from smallthinker.benchmark.results import Results
    from smallthinker.benchmark.series import Series
    from smallthinker.expert_store.storage_profile import StorageProfile

_USAGE = """smallthinker bench [MODEL] [options]
       smallthinker bench compare A B [--json]
       smallthinker bench --submit FILE"""
_QUICK = {"tokens": 32, "repeats": 2, "context": [64]}
_DEFAULTS = {"tokens": 64, "repeats": 3, "context": [128]}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        handle,
        "measure decode, prefill and time to first token over budgets, disks and prompt lengths, and write a report",
        "smallthinker bench ./4b-store --memory 512MiB 1GiB --profile raw emmc --context 128 1024 -o ./4b-results",
    )
    parser.usage = _USAGE
    parser.add_argument(
        "what", metavar="MODEL", nargs="*", help="a store (default: demo, the bundled model); or: compare A B"
    )
    parser.add_argument("--submit", metavar="FILE", type=Path, help="check a results file, print its row for the project")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    grid = parser.add_argument_group("what to measure")
    grid.add_argument("--memory", metavar="SIZE", nargs="+", help="budgets (default: three, from the floor to everything)")
    grid.add_argument(
        "--profile", metavar="NAME", nargs="+", default=["raw"],
        help="raw for the real disk, nvme, sata-ssd, ufs, emmc, sd-card, hdd, or a profile's file (default: raw)",
    )  # fmt: skip
    grid.add_argument("--context", metavar="N", nargs="+", type=int, help="prompt lengths in tokens (default: 128)")
    grid.add_argument("--tokens", metavar="N", type=int, help="decoded after each prompt (default: 64)")
    grid.add_argument("--repeats", metavar="N", type=int, help="processes for each cell, in turns (default: 3)")
    grid.add_argument("--quick", action="store_true", help="fewer tokens and repeats: the demo model in under a minute")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument("--text", metavar="FILE", type=Path, help="tokens of this text (default: random ids)")
    tokens.add_argument("--seed", metavar="N", type=int, default=0, help="of random ids (default: 0)")
    tokens.add_argument(
        "--greedy", action="store_true",
        help="decode what the model finds likeliest; without it the source's next tokens, since models that repeat "
        "themselves repeat their experts",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=int, metavar="N", help="arithmetic threads (default: physical cores)")
    how.add_argument("--reader", choices=["auto", "direct", "uring", "mmap", "buffered"], default="auto")
    how.add_argument("--kv", choices=["f16", "q8"], default="f16", help="numbers of the KV cache (default: f16)")
    how.add_argument("--limit", action="store_true", help="a memory cgroup of the budget's size around each run; root only")
    how.add_argument(
        "--real-throttle", action="store_true", help="the kernel slows the disk down, not the engine; root only"
    )
    files = parser.add_argument_group("results")
    files.add_argument(
        "-o", "--out", metavar="DIR", type=Path,
        help="folder for results.jsonl, results.md, plots and report.html; what it holds already isn't measured again "
        "(default: bench-MODEL)",
    )  # fmt: skip
    files.add_argument("--force", action="store_true", help="measure again what the folder holds already")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.errors import RequestError

    if args.submit is not None:
        if args.what:
            raise RequestError(f"--submit: takes one results file and nothing else, found also {args.what[0]!r}")
        return _submit(args.submit, args.json)
    if args.what[:1] == ["compare"]:
        if len(args.what) != 3:
            raise RequestError(f"compare: expected two results files or folders, found {len(args.what) - 1}")
        return _compare(Path(args.what[1]), Path(args.what[2]), args.json)
    if len(args.what) > 1:
        raise RequestError(f"expected one model, or: compare A B; found {len(args.what)} words")
    return _measure(args)


def _notice(text: str) -> None:
    print(f"smallthinker bench: {text}", file=sys.stderr)


def _measure(args: argparse.Namespace) -> int:
    from smallthinker.benchmark.results import begin, cell_of
    from smallthinker.benchmark.views import write_views

    series, environment, folder = _plan(args)
    results = begin(folder, environment, force=args.force, notice=_notice)
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
    if args.json:
        cells = [summary.to_dict() for summary in views.summaries]
        facts = {"environment": results.environment, "cells": cells, "failed": results.of_kind("failed")}
        print(json.dumps(facts | {"files": [str(path) for path in views.files]}))
    else:
        print(views.markdown)
        print("\n".join(["", *(str(path) for path in views.files)]))
    return 0


def _plan(args: argparse.Namespace) -> tuple[Series, dict[str, Any], Path]:
    """What is asked for, checked before anything runs: the series, its environment and the folder for it."""
    import datetime
    import hashlib

    from smallthinker.benchmark import environment as facts
    from smallthinker.benchmark.disk import describe_disk
    from smallthinker.benchmark.matrix import Settings, cells, random_answers, text_answers
    from smallthinker.benchmark.series import Series, default_budgets
    from smallthinker.errors import RequestError
    from smallthinker.expert_store.store import Store
    from smallthinker.llm import DEMO_STORE
    from smallthinker.memory_plan import parse_size
    from smallthinker.tokenizer import Tokenizer

    defaults = _QUICK if args.quick else _DEFAULTS
    tokens, repeats, prompts = (
        getattr(args, name) or defaults[name] for name in ("tokens", "repeats", "context")
    )  # fmt: skip
    for name, values in (("--tokens", [tokens]), ("--repeats", [repeats]), ("--context", prompts), ("--seed", [args.seed + 1])):
        bad = next((value for value in values if not 1 <= value <= 1 << 20), None)
        if bad is not None:
            raise RequestError(f"{name}: expected 1 to {1 << 20}, found {bad}")
    model = DEMO_STORE if args.what in ([], ["demo"]) else Path(args.what[0])
    profiles = _profiles(args.profile, args.real_throttle, args.limit)
    text = None if args.text is None else read_text(args.text)
    settings = Settings(
        tokens, args.seed, "random" if text is None else "text", args.greedy, args.threads, args.reader, args.kv,
        args.limit, "kernel" if args.real_throttle else "emulated",
    )  # fmt: skip
    with Store.open(model) as store:
        vocab = store.config.vocab_size
        ids = [] if text is None else Tokenizer(store.path, vocab).encode(text)
        environment = {
            "kind": "environment",
            "format": "smallthinker-bench",
            "format_version": 1,
            "measured": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": facts.machine(),
            "disk": describe_disk(store.path),
            "versions": facts.versions(),
            "model": facts.model_facts(store),
            "settings": settings.to_dict()
            | {"text_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest()},
            "profiles": {name: profile.to_dict() for name, profile in profiles.items() if profile is not None},
        }
    answers = {
        prompt: random_answers(vocab, prompt, tokens, args.seed) if text is None else text_answers(ids, prompt, tokens)
        for prompt in prompts
    }
    series = Series(model, settings, [], profiles, answers, repeats)
    budgets = [parse_size(size) for size in args.memory] if args.memory else default_budgets(model, series.floor_bytes())
    series.cells.extend(cells(budgets, list(profiles), prompts))
    return series, environment, args.out or Path(f"bench-{environment['model']['name']}")


def _profiles(names: list[str], is_throttled: bool, is_limited: bool) -> dict[str, StorageProfile | None]:
    """By name; None is the real disk. Raises ProfileError, RequestError."""
    from smallthinker.benchmark.cgroup import is_v2
    from smallthinker.benchmark.matrix import RAW
    from smallthinker.errors import RequestError
    from smallthinker.expert_store.storage_profile import load_profile

    found: dict[str, StorageProfile | None] = {}
    for asked in dict.fromkeys(names):
        profile = None if asked == RAW else load_profile(asked)
        name = RAW if profile is None else profile.name
        if name in found or (name == RAW) != (profile is None):
            raise RequestError(f"--profile {asked}: expected profiles of different names, found {name!r} twice")
        found[name] = profile
    if is_throttled and is_limited and is_v2():
        raise RequestError("--limit and --real-throttle: together they need cgroups of version 1, found version 2")
    if is_throttled and list(found) == [RAW]:
        raise RequestError("--real-throttle: expected a --profile to throttle the disk to, found only raw")
    return found


def _compare(a: Path, b: Path, as_json: bool) -> int:
    from smallthinker.benchmark.compare import compare, comparison_text
    from smallthinker.benchmark.results import read_results
    from smallthinker.errors import ResultsError

    found = compare(read_results(a, _notice), read_results(b, _notice))
    if not found.changes:
        raise ResultsError(f"{a} and {b}: expected cells that both have, found none: other budgets, profiles or prompts")
    if as_json:
        print(json.dumps(found.to_dict()))
        return 0
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(comparison_text(found))
    return 0


def _submit(path: Path, as_json: bool) -> int:
    from smallthinker.benchmark.submission import header, read_submission, row

    found = row(read_submission(path))
    if as_json:
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

        self._bar = tqdm(total=steps, desc="measuring", unit="run", disable=None, dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def started(self, what: str) -> None:
        self._bar.set_postfix_str(what)

    def ended(self, measured: bool) -> None:
        """What was there already took no time: it must not make the rest look quick."""
        if measured:
            self._bar.update()
        else:
            self._bar.total -= 1
            self._bar.refresh()

    def notice(self, text: str) -> None:
        self._bar.clear()
        _notice(text)
