"""`smallthinker run`: write text that continues a prompt."""

from __future__ import annotations

import argparse
import json
import sys

from smallthinker.commands.options import (
    EXIT_INTERRUPTED,
    Commands,
    add_command,
    add_model_options,
    add_sampling_options,
    generation_options,
    load,
    text,
)
from smallthinker.terminal import answer_stream, read_input


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        handle,
        "write text that continues a prompt",
        'smallthinker run -m ./4b-store --memory 1GiB --max-tokens 64 "The sea was"',
    )
    parser.add_argument("prompt", type=text, metavar="PROMPT", help="text to continue; - reads it from standard input")
    add_model_options(parser)
    add_sampling_options(parser)
    parser.add_argument(
        "--special-tokens", action="store_true", help="names of special tokens in PROMPT stand for them (default: text)"
    )
    parser.add_argument(
        "--stats", choices=["line", "json"], default="line", help="figures on the last line of stderr (default: line)"
    )


def handle(args: argparse.Namespace) -> int:
    prompt = read_input() if args.prompt == "-" else args.prompt
    from smallthinker.chat import interrupts_cancel

    options = generation_options(args)
    with (
        load(args) as llm,
        llm.stream(prompt, special_tokens=args.special_tokens, **options) as stream,
        interrupts_cancel(llm),
    ):
        answer = answer_stream()
        for piece in stream:
            print(piece, end="", flush=True, file=answer)
        print(flush=True)
        assert stream.completion is not None
        stats = stream.completion.stats
        profile = stream.completion.profile
        if args.timings:
            print(profile.table(), file=sys.stderr)
        if args.verbose and stats.least_slots < stats.slots:
            print(f"the machine ran short of memory: only {stats.least_slots} experts could stay", file=sys.stderr)
        figures = stats.to_dict() | ({"profile": profile.to_dict()} if args.timings else {})
        print(json.dumps(figures) if args.stats == "json" else stats.line(), file=sys.stderr)
        return EXIT_INTERRUPTED if stream.completion.finish_reason == "cancelled" else 0
