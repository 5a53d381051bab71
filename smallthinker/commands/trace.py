"""`smallthinker trace`: which experts the tokens of a text use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallthinker.commands.models import add_model, find_model, model_word
from smallthinker.commands.options import (
    Commands,
    ProgressBar,
    add_command,
    add_memory,
    check_out,
    engine_options,
    read_text,
    whole,
)
from smallthinker.commands.output import add_output, check_plot, print_found, save_plot

if TYPE_CHECKING:
    from smallthinker.charts.style import Chart
    from smallthinker.router.trace import Trace


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "trace",
        handle,
        "record which experts the tokens of a text use, to choose a cache with cache-sim",
        "smallthinker trace ./4b-store --text book.txt -o book.trace --tokens 2000",
    )
    add_model(parser)
    parser.add_argument("--text", metavar="FILE", type=Path, required=True, help="text to run through the model, UTF-8")
    parser.add_argument("-o", "--out", metavar="TRACE", type=Path, required=True, help="file to write")
    parser.add_argument("--tokens", type=whole, metavar="N", help="only the first N tokens (default: all)")
    add_memory(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_output(parser, rows="how many of the tokens use each expert", plot="how evenly each layer's experts are used")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.calibration.tracing import record, split, usage_text
    from smallthinker.engine import Engine
    from smallthinker.errors import RequestError
    from smallthinker.router.trace import save_trace, usage

    if args.tokens is not None and args.tokens < 1:
        raise RequestError(f"--tokens: expected at least 1, found {args.tokens}")
    store = find_model(model_word(args))
    check_out(args.out, [args.text, store], args.force)
    check_plot(args.plot, [args.text, store])
    text = read_text(args.text)
    options = engine_options(args)
    with ProgressBar("tracing", "token") as progress, Engine(store, options) as engine:
        tokens = engine.tokenizer.encode_prompt(text)[: args.tokens]
        trace = record(engine, split(tokens, engine.plan.context), progress)
    save_trace(trace, args.out, replace=args.force)
    use = usage(trace.ids, trace.starts, trace.experts)
    facts: dict[str, Any] = {
        "tokens": trace.tokens,
        "sequences": len(trace.starts),
        "layers": trace.layers,
        "experts": trace.experts,
    }
    facts |= {"experts_per_token": trace.experts_per_token, "record_bytes": trace.record_bytes, "model": trace.model}
    save_plot(args.plot, lambda: _chart(trace))
    nbytes = args.out.stat().st_size
    print_found(
        args,
        lambda: (
            f"{args.out}: {trace.tokens} tokens in {len(trace.starts)} sequences, {nbytes:,} bytes\n{usage_text(use)}"
        ),
        lambda: facts | {"file": str(args.out), "file_bytes": nbytes} | use._asdict(),
        lambda: _rows(trace),
    )
    return 0


def _rows(trace: Trace) -> list[dict[str, Any]]:
    from smallthinker.router.trace import expert_use

    use = expert_use(trace.ids, trace.experts).tolist()
    return [
        {"layer": layer, "expert": expert, "share_of_tokens": share}
        for layer, shares in enumerate(use)
        for expert, share in enumerate(shares)
    ]


def _chart(trace: Trace) -> Chart:
    from smallthinker.charts.routing import use_chart
    from smallthinker.router.trace import expert_use

    use = expert_use(trace.ids, trace.experts)
    return use_chart("trace", f"Expert use by layer, {trace.model}", use, f"{trace.tokens} tokens")
