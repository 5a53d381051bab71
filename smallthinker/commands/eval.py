"""`smallthinker eval`: what a quantisation or a lossy switch costs, as numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.options import (
    Commands,
    ProgressBar,
    add_command,
    add_memory,
    add_running,
    add_switches,
    engine_options,
    read_text,
    whole,
)


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure how well a store predicts a text, or how far it is from another store",
        description="Measure what a quantisation or a lossy switch costs.",
        epilog="example: smallthinker eval perplexity ./4b-store --text book.txt --tokens 10000",
    )
    measures = parser.add_subparsers(dest="measure", metavar="MEASURE", required=True)
    one = add_command(
        measures,
        "perplexity",
        _perplexity,
        "bits per byte and perplexity of a text",
        "smallthinker eval perplexity ./4b-store --text book.txt --tokens 10000 --memory 1GiB",
    )
    one.add_argument(
        "store", metavar="STORE", nargs="?", type=Path, help="a store or .gguf file (default: the demo model)"
    )
    _add_options(one)
    two = add_command(
        measures,
        "compare",
        _compare,
        "KL divergence and agreement of a store with a reference, over a text",
        "smallthinker eval compare ./4b-q4 ./4b-f16 --text book.txt --tokens 10000",
    )
    two.add_argument(
        "store", metavar="STORE", nargs="?", type=Path, help="a store or .gguf file (default: the demo model)"
    )
    two.add_argument(
        "reference",
        metavar="REFERENCE",
        nargs="?",
        type=Path,
        help="a store of the same model, e.g. in f16; always runs without lossy switches (default: STORE itself)",
    )
    _add_options(two)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", metavar="FILE", type=Path, required=True, help="text to predict, UTF-8")
    parser.add_argument("--tokens", type=whole, metavar="N", help="only the first N tokens (default: all)")
    parser.add_argument(
        "--context", type=whole, metavar="N", help="tokens of a window (default: the model's, at most 4096)"
    )
    parser.add_argument(
        "--stride", type=whole, metavar="N", help="new tokens of each window after the first (default: half of it)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("model")
    add_memory(group)
    add_running(group)
    add_switches(group)


def _perplexity(args: argparse.Namespace) -> int:
    from smallthinker.evaluation.evaluate import perplexity
    from smallthinker.llm import DEMO_STORE

    text, options = read_text(args.text), engine_options(args)
    with ProgressBar("evaluating", "token") as progress:
        result = perplexity(
            args.store or DEMO_STORE, text, options, stride=args.stride, tokens=args.tokens, progress=progress
        )
    print(json.dumps(result.to_dict()) if args.json else f"{result.text()}\n{result.scope()}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from smallthinker.evaluation.evaluate import compare
    from smallthinker.llm import DEMO_STORE

    text, options = read_text(args.text), engine_options(args)
    store = args.store or DEMO_STORE
    with ProgressBar("comparing", "token") as progress:
        result = compare(
            store, args.reference or store, text, options, stride=args.stride, tokens=args.tokens, progress=progress
        )
    print(json.dumps(result.to_dict()) if args.json else result.text())
    return 0
