"""`smallthinker eval`: what a quantisation or a lossy switch costs, as numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.models import DEFAULT, KINDS, add_model, add_model_option, find_model, model_word
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
from smallthinker.errors import RequestError


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
    add_model(one)
    _add_options(one)
    two = add_command(
        measures,
        "compare",
        _compare,
        "KL divergence and agreement of a store with a reference, over a text",
        "smallthinker eval compare ./4b-q4 ./4b-f16 --text book.txt --tokens 10000",
    )
    two.add_argument(
        "words",
        metavar="MODEL",
        nargs="*",
        help=f"{KINDS} ({DEFAULT}); and a reference, the same model e.g. in f16, which always runs without lossy "
        "switches (default: MODEL itself)",
    )
    add_model_option(two, "the same as the first MODEL")
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

    store = find_model(model_word(args))
    text, options = read_text(args.text), engine_options(args)
    with ProgressBar("evaluating", "token") as progress:
        result = perplexity(store, text, options, stride=args.stride, tokens=args.tokens, progress=progress)
    print(json.dumps(result.to_dict()) if args.json else f"{result.text()}\n{result.scope()}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from smallthinker.evaluation.evaluate import compare

    words = [*([] if args.model is None else [args.model]), *args.words]
    if len(words) > 2:
        raise RequestError(f"MODEL: expected a model and a reference, found {len(words)} words")
    store, *references = [find_model(word) for word in words or [None]]
    text, options = read_text(args.text), engine_options(args)
    with ProgressBar("comparing", "token") as progress:
        reference = references[0] if references else store
        result = compare(store, reference, text, options, stride=args.stride, tokens=args.tokens, progress=progress)
    print(json.dumps(result.to_dict()) if args.json else result.text())
    return 0
