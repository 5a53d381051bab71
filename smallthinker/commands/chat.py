"""`smallthinker chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from smallthinker.commands.models import add_model, find_model, load, model_word, tell_of_demo
from smallthinker.commands.options import (
    Commands,
    add_chat_options,
    add_command,
    add_model_options,
    add_quiet,
    add_sampling_options,
    add_timings,
    chat_options,
    generation_options,
)


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "chat", handle, "talk with a model", "smallthinker chat model.gguf --memory 1GiB --temperature 0.7"
    )
    add_model(parser)
    add_chat_options(parser, "show them before the answer")
    parser.add_argument("--resume", action="store_true", help="go on with the last conversation at a terminal")
    add_model_options(parser)
    add_timings(parser)
    add_quiet(parser, " and notes")
    add_sampling_options(parser)


def handle(args: argparse.Namespace) -> int:
    from smallthinker.chat import plain_dialogue
    from smallthinker.chat.conversation import COMMANDS, Chat, say
    from smallthinker.chat.kept_messages import last_messages, state_folder
    from smallthinker.chat.line_input import LineInput
    from smallthinker.errors import SmallThinkerError, one_line

    word = model_word(args)
    path: Path | None = find_model(word)
    if word is None:
        tell_of_demo(args)
    messages = last_messages() if args.resume else []
    options = generation_options(args)
    kept = state_folder() if sys.stdin.isatty() else None
    before: Path | None = None
    with LineInput(COMMANDS, kept) as lines:
        if lines.is_terminal and not args.quiet:
            print("/help lists the commands.")
        while path is not None:
            try:
                llm = load(args, path)
            except SmallThinkerError as e:
                if before is None:
                    raise
                say(one_line(str(e)))
                path, before = before, None
                continue
            with llm:
                chat = Chat(
                    llm,
                    options,
                    chat_options(args, llm) if llm.tokenizer.has_chat_template else {},
                    args.system,
                    shows_thoughts=args.thinking == "show",
                    timings=args.timings,
                    quiet=args.quiet,
                    words=args.parser.options_in,
                    find=find_model,
                    messages=messages,
                    kept=kept,
                )
                if not (llm.tokenizer.has_chat_template or args.quiet):
                    say(plain_dialogue.NOTE, sys.stderr)
                if messages:
                    say(chat.where())
                path, before = chat.run(lines), path
                options, messages = chat.options, chat.messages
    return 0
