"""`smallthinker trace`: which experts the tokens of a text use."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.calibration.tracing import record, split, usage_text
    from smallthinker.engine import Engine
    from smallthinker.errors import RequestError
    from smallthinker.router.trace import save_trace, usage

    if args.tokens is not None and args.tokens < 1:
        raise RequestError(f"--tokens: expected at least 1, found {args.tokens}")
    store = find_model(model_word(args))
    check_out(args.out, [args.text, store], args.force)
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
    if args.json:
        print(json.dumps(facts | {"file": str(args.out), "file_bytes": args.out.stat().st_size} | use._asdict()))
    else:
        print(f"{args.out}: {trace.tokens} tokens in {len(trace.starts)} sequences, {args.out.stat().st_size:,} bytes")
        print(usage_text(use))
    return 0
