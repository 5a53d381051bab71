"""`smallthinker calibrate`: guesses of what to read, learned from a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smallthinker.commands.models import KINDS, add_model, find_model, model_word
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
from smallthinker.errors import RequestError


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "calibrate",
        handle,
        "learn from a text which experts are worth reading early",
        "smallthinker calibrate ./4b-store --text book.txt",
    )
    add_model(parser, KINDS, "needed: what is learned is kept with it")
    parser.add_argument(
        "--text", metavar="FILE", type=Path, required=True, help="text like what the model will write, UTF-8"
    )
    parser.add_argument("--tokens", type=whole, metavar="N", help="only the first N tokens (default: 8192)")
    add_memory(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing predictor")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def handle(args: argparse.Namespace) -> int:
    from smallthinker.calibration.calibrate import calibrate
    from smallthinker.expert_store.format import PREDICTOR_FILE
    from smallthinker.files import is_there

    word = model_word(args)
    if word is None:
        raise RequestError("MODEL: expected the model to learn for, found none; smallthinker list names those here")
    store = find_model(word)
    old = store / PREDICTOR_FILE
    if args.force and is_there(old):
        check_out(old, [args.text], force=True)
    text = read_text(args.text)
    with ProgressBar("recording", "token") as recording, ProgressBar("learning", "pair") as training:
        result = calibrate(
            store,
            text,
            engine_options(args),
            tokens=args.tokens,
            force=args.force,
            recording=recording,
            training=training,
        )
    print(json.dumps(result.to_dict()) if args.json else result.text())
    return 0
