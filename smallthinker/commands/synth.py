"""`smallthinker synth`: a random store of a model's true shapes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from smallthinker.commands.options import (
    SHAPE_FORMATS,
    Commands,
    ProgressBar,
    add_command,
    add_compression,
    whole,
    written,
    written_text,
)
from smallthinker.errors import SmallThinkerError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "synth",
        handle,
        "make a random store of a model's true shapes, to measure without its weights",
        "smallthinker synth 4b ./4b-random --quant q4_0",
    )
    parser.add_argument(
        "shape",
        metavar="SHAPE",
        help="a published shape (4b, 21b, qwen3-30b-a3b, gpt-oss-20b, ...: a wrong one names all), or a config.json",
    )
    parser.add_argument("store", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument(
        "--quant",
        choices=[*SHAPE_FORMATS, "none"],
        default="q4",
        help="weight format; q4: q4_k_s, or q4_0 where a model can't use that; mxfp4: experts' alone, the rest q8_0; "
        "none writes a bf16 Hugging Face checkpoint (default: q4)",
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="the same seed gives the same bytes (default: 0)"
    )
    parser.add_argument(
        "--skew",
        type=float,
        default=0.0,
        metavar="X",
        help="constant preference for some experts, relative to what tokens make of them; 1.3 is about that of the "
        "published models (default: 0, all about equally used)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing store, once the new one is whole")
    add_compression(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.expert_store.synthetic.synth import synth

    with ProgressBar("writing") as progress:
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
    facts: dict[str, Any] = {"checkpoint": str(args.store)} if args.quant == "none" else written(args.store)
    if args.quant == "none":
        said = f"{args.store}: a bf16 checkpoint; its routing is not measured, that needs a store"
        print(json.dumps(facts) if args.json else said)
        return 0
    if not args.json:
        print(written_text(facts))
    from smallthinker.calibration.tracing import random_usage, usage_text
    from smallthinker.expert_store.format import CONFIG_FILE
    from smallthinker.models.registry import read_model

    if not read_model(Path(args.store) / CONFIG_FILE, in_store=True).routed_layers:  # there is nothing to choose
        if args.json:
            print(json.dumps(facts))
        return 0
    try:
        with ProgressBar("measuring", "token") as progress:
            tokens, use = random_usage(args.store, args.seed, progress)
    except SmallThinkerError as e:  # the store is whole; this machine may be too small to run it
        said = f"routing not measured: {e}"
    else:
        said = f"routing of {tokens} random tokens: {usage_text(use)}"
        facts |= {"tokens": tokens} | use._asdict()
    print(json.dumps(facts) if args.json else said)
    return 0
