"""`smallthinker chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse

from smallthinker.commands.options import (
    Commands,
    add_chat_options,
    add_command,
    add_model_options,
    add_sampling_options,
    chat_options,
    generation_options,
    load,
)
from smallthinker.errors import RequestError, shown


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "chat", handle, "talk with a model", "smallthinker chat model.gguf --memory 1GiB --temperature 0.7"
    )
    parser.add_argument("store", nargs="?", metavar="MODEL", help="a store or .gguf file, as with -m")
    add_chat_options(parser, "show them before the answer")
    add_model_options(parser)
    add_sampling_options(parser)


def handle(args: argparse.Namespace) -> int:
    from smallthinker.chat import Chat

    if args.store is not None:
        if args.model is not None:
            raise RequestError(f"MODEL: expected one model, found {shown(args.model)} and {shown(args.store)}")
        args.model = args.store
    with load(args) as llm:
        return Chat(
            llm,
            generation_options(args),
            chat_options(args, llm),
            args.system,
            shows_thoughts=args.thinking == "show",
            timings=args.timings,
        ).run()
