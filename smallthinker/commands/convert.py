"""`smallthinker convert`: a store from a Hugging Face checkpoint or a GGUF file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from smallthinker.commands.options import (
    WEIGHT_FORMATS,
    Commands,
    ProgressBar,
    add_command,
    add_compression,
    written,
    written_text,
)
from smallthinker.errors import printable


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "convert",
        handle,
        "make a store from a Hugging Face checkpoint or a GGUF file",
        "smallthinker convert ./SmallThinker-4BA0.6B-Instruct ./4b-store --quant q4_0; "
        "smallthinker convert ./SmallThinker-4BA0.6B-Instruct-Q8_0.gguf ./4b-store --quant q8_0",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="folder with config.json, *.safetensors, tokenizer.json; or a .gguf file, the first of a model in parts",
    )
    parser.add_argument("store", metavar="STORE", type=Path, help="folder to write")
    parser.add_argument(
        "--quant",
        choices=[*WEIGHT_FORMATS, "keep"],
        help="weight format; q4: q4_k_s, or q4_0 where a model can't use that; keep: each matrix's own, exactly "
        "(default: quantised weights stay as they are, others become q4)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing store, once the new one is whole")
    add_compression(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.expert_store.convert import convert

    notes: list[str] = []

    def notice(text: str) -> None:
        notes.append(text)
        print(f"note: {printable(text)}", file=sys.stderr)

    with ProgressBar("converting") as progress:
        convert(args.checkpoint, args.store, args.quant, args.force, progress, args.compress, notice)
    facts = written(args.store) | {"notes": notes}
    print(json.dumps(facts) if args.json else written_text(facts))
    return 0
