"""`smallthinker chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse

from smallthinker.commands.models import add_model, find_model, load, model_word, tell_of_demo
from smallthinker.commands.options import (
    Commands,
    add_chat_options,
    add_command,
    add_model_options,
    add_sampling_options,
    chat_options,
    generation_options,
)


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "chat", handle, "talk with a model", "smallthinker chat model.gguf --memory 1GiB --temperature 0.7"
    )
    add_model(parser)
    add_chat_options(parser, "show them before the answer")
    add_model_options(parser)
    add_sampling_options(parser)


def handle(args: argparse.Namespace) -> int:
    from smallthinker.chat import Chat

    word = model_word(args)
    path = find_model(word)
    if word is None:
        tell_of_demo()
    with load(args, path) as llm:
        return Chat(
            llm,
            generation_options(args),
            chat_options(args, llm),
            args.system,
            shows_thoughts=args.thinking == "show",
            timings=args.timings,
            words=args.parser.options_in,
        ).run()
